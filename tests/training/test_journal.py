"""The journal: one object a line, as if nothing had happened after an interruption, quiet without a terminal."""

import json

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter  # noqa: F401 (its format is what is read below)

from afa_jax.training.journal import METRICS, Journal, read_metrics

STAGES = {"ast": 4, "act": 4}


def write(workdir, stage, steps, start=0):
    journal = Journal(workdir, "afa", STAGES)
    journal.begin(stage, start)
    for step in steps:
        journal.record(stage, step, "train", {"loss": step / 10})
    journal.flush()
    journal.close()
    return journal


def lines(workdir):
    return [(r["stage"], r["step"]) for r in read_metrics(workdir / METRICS)]


def test_one_object_a_line(tmp_path):
    write(tmp_path, "ast", [1, 2])
    text = (tmp_path / METRICS).read_text()
    assert [json.loads(line) for line in text.splitlines()] == [
        {"stage": "ast", "step": 1, "split": "train", "loss": 0.1},
        {"stage": "ast", "step": 2, "split": "train", "loss": 0.2},
    ]


def test_going_on_drops_what_came_after_the_checkpoint(tmp_path):
    write(tmp_path, "ast", [1, 2, 3])
    write(tmp_path, "ast", [3, 4], start=2)
    assert lines(tmp_path) == [("ast", 1), ("ast", 2), ("ast", 3), ("ast", 4)]
    write(tmp_path, "act", [1, 2])
    write(tmp_path, "act", [2], start=1)
    assert lines(tmp_path)[4:] == [("act", 1), ("act", 2)]
    write(tmp_path, "ast", [4], start=3)  # stage I was damaged: what stage II said is void
    assert lines(tmp_path) == [("ast", 1), ("ast", 2), ("ast", 3), ("ast", 4)]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    write(tmp_path, "ast", [1, 2])
    path = tmp_path / METRICS
    path.write_text(path.read_text() + '{"stage": "ast", "st')
    write(tmp_path, "ast", [3], start=2)
    assert lines(tmp_path) == [("ast", 1), ("ast", 2), ("ast", 3)]


def scalars(workdir):
    """(tag, step, value) of every scalar in the event files: length, its checksum, record, its checksum."""
    found = []
    for file in (workdir / "tensorboard").iterdir():
        content = file.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            content = content[16 + length :]
    return found


def test_event_files_say_the_same_with_stages_end_to_end(tmp_path):
    write(tmp_path, "ast", [1, 2, 3])
    write(tmp_path, "ast", [3, 4], start=2)
    write(tmp_path, "act", [1])
    expected = [("train/loss", step, pytest.approx(loss)) for step, loss in zip(range(1, 6), (1, 2, 3, 4, 1))]  # noqa: B905
    expected = [(tag, step, pytest.approx(loss.expected / 10)) for tag, step, loss in expected]
    assert scalars(tmp_path) == expected


def test_the_bar_is_quiet_where_output_is_no_terminal(tmp_path, capfd):
    journal = Journal(tmp_path, "afa", STAGES)
    journal.begin("ast", 0)
    journal.advance(2, 0.5, 0.25, 1000.0)
    journal.close()
    assert capfd.readouterr() == ("", "")


def test_the_bar_shows_loss_top1_speed_and_time_left(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "160")
    journal = Journal(tmp_path, "afa seed 0", STAGES)
    journal.begin("ast", 0)
    journal.advance(2, 0.5, 0.25, 1000.0)
    journal._progress.refresh()
    journal.close()
    shown = capfd.readouterr().err
    for part in ("afa seed 0 · ast", "2/4", "loss 0.500", "top-1  25.0 %", "1,000 images/s", "-:--:--"):
        assert part in shown
