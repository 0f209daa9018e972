"""The whole story on tiny data: two stages, hand-over, resume, comparison."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from afa_jax.comparison import run_all
from afa_jax.config import settle
from afa_jax.data import catalog
from afa_jax.data.dataset import Request
from afa_jax.errors import DivergedError
from afa_jax.experiment import run, source_network
from afa_jax.main import main
from afa_jax.models import convert, torch_file, weights, zoo
from afa_jax.training import loop
from afa_jax.training.journal import read_metrics
from tests import tiny

ROOT = Path(__file__).parents[1]


def test_algorithm_1(tmp_path, monkeypatch):
    """Stage II starts from stage I's target, whose copy, but for its head, is the teacher; its attention is new."""
    honest, seen = loop.train_stage, []

    def look(step_fn, state, frozen, stage, *rest, **settings):
        before = jax.tree.map(np.array, (state.params, state.batch_stats, frozen.teacher))
        state = honest(step_fn, state, frozen, stage, *rest, **settings)
        after = jax.tree.map(np.array, (state.params, state.batch_stats, frozen.teacher))
        seen.append((stage, before, after, stage.first_batch))
        return state

    experiment = settle(tiny.config(steps=6))
    source = weights.load(tiny.NETWORK, source_network(experiment))
    monkeypatch.setattr("afa_jax.experiment.train_stage", look)
    run(experiment, tmp_path / "run")
    (first, start, middle, begin), (second, again, end, go_on) = seen
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)  # noqa: E731
    without_head = lambda params: {key: value for key, value in params.items() if key != "fc"}  # noqa: E731

    assert (first.name, second.name, begin, go_on) == ("ast", "act", 0, 3)
    same(start[2], source)  # stage I's teacher is the source network, head and all
    same(without_head(start[0]["target"]), without_head(source["params"]))
    assert start[0]["target"]["fc"]["kernel"].shape == (16, 10)
    same(start[1], source["batch_stats"])
    same(again[0]["target"], middle[0]["target"])
    same(again[1], middle[1])
    same(without_head(again[2]["params"]), without_head(middle[0]["target"]))
    same(again[2]["params"]["fc"], source["params"]["fc"])  # the teacher keeps its source head
    same(again[2]["batch_stats"], middle[1])
    for before, after in ((start, middle), (again, end)):
        same(before[2], after[2])  # no teacher changes during a stage
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), before[0]["target"], after[0]["target"])
        assert all(jax.tree.leaves(moved))
    assert jax.tree.map(np.shape, again[0]["attention"]) != jax.tree.map(np.shape, middle[0]["attention"])


def test_the_result_is_the_saved_models_on_the_whole_test_split(whole):
    experiment = settle(tiny.config(eval_every=2))
    data = catalog.load("digits", Request(size=8, per_class=3, seed=0))
    network = zoo.NETWORKS[tiny.NETWORK]
    images = (data.test.images / np.float32(255) - np.array(network.mean)) / np.array(network.std)
    variables = weights.load(tiny.NETWORK, whole / "model")
    logits = zoo.forward(zoo.create(experiment.network, 10), variables, images.astype(np.float32)).logits
    hits = int((np.asarray(logits).argmax(-1) == data.test.labels).sum())
    assert tiny.numbers(whole)["last_top1"] == pytest.approx(hits / 1767, abs=1.5 / 1767)  # one tie at most


def test_a_seed_chooses_its_own_labelled_images(tmp_path, monkeypatch):
    asked = []
    honest = catalog.load

    def load(name, request):
        asked.append(request.seed)
        return honest(name, request)

    monkeypatch.setattr("afa_jax.experiment.catalog.load", load)
    run(settle(tiny.config("scratch", steps=1, seed=77)), tmp_path / "run")
    assert asked == [77]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed two-stage run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(settle(tiny.config(eval_every=2)), workdir)
    return workdir


def test_a_run_leaves_what_the_design_promises(whole):
    assert {f.name for f in whole.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "model",
        "origin.json",
        "summary.json",
        "tensorboard",
    }
    summary = json.loads((whole / "summary.json").read_text())
    assert [(s["name"], s["steps"]) for s in summary["stages"]] == [("ast", 4), ("act", 4)]
    assert summary["last_top1"] == summary["stages"][1]["last_top1"]
    tests = [r for r in read_metrics(whole / "metrics.jsonl") if r["split"] == "test"]
    assert [(r["stage"], r["step"]) for r in tests] == [("ast", 2), ("ast", 4), ("act", 2), ("act", 4)]
    assert summary["best_test_top1"] == max(r["top1"] for r in tests)
    assert summary["experiment"]["recipe"] == "afa" and summary["seed"] == 0
    assert summary["train_images"] == 30 and summary["test_images"] == 1767
    assert {"jax", "flax", "optax", "orbax-checkpoint", "python", "afa_jax"} <= summary["versions"].keys()
    assert summary["train_images_per_second"] > 0


def test_stage_two_starts_from_stage_one_and_at_its_last_rate(whole):
    records = [r for r in read_metrics(whole / "metrics.jsonl") if r["split"] == "train"]
    rates = [(r["stage"], r["learning_rate"]) for r in records]
    expected = [("ast", 0.01)] * 3 + [("ast", 0.001)] + [("act", 0.001)] * 3 + [("act", 0.0001)]
    assert rates == [(stage, pytest.approx(rate)) for stage, rate in expected]


def test_the_saved_model_is_the_target_alone(whole):
    variables = weights.load(tiny.NETWORK, whole / "model")
    assert variables["params"]["fc"]["kernel"].shape == (16, 10)
    assert set(variables) == {"params", "batch_stats"}
    assert weights.describe(whole / "model")["classes"] == [str(d) for d in range(10)]
    zoo.forward(zoo.create(tiny.NETWORK, 10), variables, np.zeros((1, 8, 8, 3), np.float32))


def test_the_same_command_again_finds_the_finished_run(whole, capsys, monkeypatch):
    monkeypatch.setattr("afa_jax.experiment.Run", None)  # nothing may be set up
    before = {f: f.stat().st_mtime_ns for f in whole.rglob("*") if f.is_file() and f.name != ".lock"}
    run(settle(tiny.config(eval_every=2)), whole)
    assert "finished already" in capsys.readouterr().out
    assert before == {f: f.stat().st_mtime_ns for f in whole.rglob("*") if f.is_file() and f.name != ".lock"}


def test_another_config_in_the_same_workdir_is_refused(whole, tmp_path, capsys):
    file = tmp_path / "other.py"
    file.write_text("from tests import tiny\ndef get_config(): return tiny.config(eval_every=2, seed=4)\n")
    assert main(["main", "--config", str(file), "--workdir", str(whole)]) == 2
    assert "holds another run (seed is 0 there and 4 here)" in capsys.readouterr().err


def test_seeds_differ_and_repeat(whole, tmp_path):
    again = tmp_path / "again"
    run(settle(tiny.config(eval_every=2)), again)
    assert tiny.numbers(again) == tiny.numbers(whole)
    other = tmp_path / "other"
    run(settle(tiny.config(eval_every=2, seed=1)), other)
    assert tiny.numbers(other)["stages"] != tiny.numbers(whole)["stages"]


COMMAND = """
import sys
from afa_jax.config import settle
from afa_jax.data import catalog
from afa_jax.experiment import run
from pathlib import Path
from tests import tiny
run(settle(tiny.config(eval_every=2)), Path(sys.argv[1]))
"""


def start(workdir):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(workdir)], cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL
    )


def kill_after(workdir, lines):
    """Starts the run and kills it, as the kernel would, once its journal has that many lines."""
    process = start(workdir)
    journal = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_in_either_stage_it_ends_with_the_same_numbers(whole, tmp_path):
    """Twelve lines in all: four steps and two evaluations a stage. One kill in each stage, at random lines."""
    workdir = tmp_path / "run"
    chosen = random.Random()  # another place at each test run; the message names it
    kills = chosen.randrange(1, 5), chosen.randrange(7, 11)
    for lines in kills:
        kill_after(workdir, lines)
        assert not (workdir / "summary.json").exists()
    process = start(workdir)
    assert process.wait(timeout=120) == 0
    assert tiny.numbers(workdir) == tiny.numbers(whole), kills
    assert read_metrics(workdir / "metrics.jsonl") == read_metrics(whole / "metrics.jsonl"), kills
    made, expected = (weights.load(tiny.NETWORK, d / "model") for d in (workdir, whole))
    jax.tree.map(np.testing.assert_array_equal, made, expected)


def spoil(folder):
    largest = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-7])


@pytest.mark.parametrize("damaged", [["2-act/4"], ["2-act/4", "2-act/2"], ["1-ast/4"], ["1-ast/4", "1-ast/2"]])
def test_damaged_checkpoints_cost_steps_but_change_no_number(whole, tmp_path, damaged, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / "summary.json").unlink()
    for checkpoint in damaged:
        spoil(workdir / "checkpoints" / checkpoint)
    run(settle(tiny.config(eval_every=2)), workdir)
    told = capfd.readouterr().err
    assert all(f"{checkpoint} is damaged; it is removed" in told for checkpoint in damaged)
    assert tiny.numbers(workdir) == tiny.numbers(whole)
    assert read_metrics(workdir / "metrics.jsonl") == read_metrics(whole / "metrics.jsonl")


def test_a_diverging_run_ends_with_a_sentence_and_no_result(tmp_path, capsys):
    file = tmp_path / "wild.py"
    file.write_text(
        "from tests import tiny\n"
        "def get_config(): return tiny.config('ast', learning_rate=1e4, checkpoint_every=1, steps=40)\n"
    )
    workdir = tmp_path / "run"
    assert main(["main", "--config", str(file), "--workdir", str(workdir)]) == 2
    err = capsys.readouterr().err
    assert "The loss is no longer a finite number at step" in err and "lower methods.ast.alpha" in err
    assert not (workdir / "summary.json").exists()
    for record in read_metrics(workdir / "metrics.jsonl"):
        assert np.isfinite(record["loss"])


def test_a_comparison_prints_its_table_and_can_grow(tmp_path, capsys):
    small = {"steps": 2, "eval_every": 0, "checkpoint_every": 100}
    run_all(settle(tiny.config("scratch,l2", seeds=2, **small)), tmp_path)
    shown = capsys.readouterr().out
    assert "scratch" in shown and "±" in shown and str(tmp_path) in shown
    for recipe in ("scratch", "l2"):
        for seed in (0, 1):
            assert tiny.numbers(tmp_path / recipe / f"seed{seed}")["seed"] == seed
    runs = json.loads((tmp_path / "comparison.json").read_text())["runs"]
    assert sorted((r["recipe"], r["seed"]) for r in runs) == [("l2", 0), ("l2", 1), ("scratch", 0), ("scratch", 1)]
    run_all(settle(tiny.config("scratch,l2,dfa", seeds=2, **small)), tmp_path)
    assert capsys.readouterr().out.count("finished already") == 4


def test_a_diverging_run_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    honest = loop.train_stage

    def diverge_for_l2(step_fn, state, frozen, stage, *rest, **settings):
        if stage.name == "l2":
            raise DivergedError("The loss is no longer a finite number.")
        return honest(step_fn, state, frozen, stage, *rest, **settings)

    monkeypatch.setattr("afa_jax.experiment.train_stage", diverge_for_l2)
    with pytest.raises(DivergedError, match="1 of 2 runs diverged: l2, seed 0: The loss"):
        run_all(settle(tiny.config("l2,dfa", steps=2)), tmp_path)
    shown = capsys.readouterr().out
    assert "–, 1 failed" in shown and "dfa" in shown


def test_the_source_network_is_trained_once(whole, cache):
    experiment = settle(tiny.config())
    folder = source_network(experiment)
    assert cache in folder.parents
    assert weights.describe(folder)["classes"][0] == "a"
    assert source_network(settle(tiny.config("l2", steps=99))) == folder  # the target's settings do not matter
    assert source_network(settle(tiny.config(**{"source.steps": 31, "steps": 2}))) != folder


def test_a_source_from_a_file_is_the_same(whole, tmp_path):
    folder = source_network(settle(tiny.config()))
    workdir = tmp_path / "run"
    run(settle(tiny.config(eval_every=2, **{"source.weights": str(folder)})), workdir)
    assert tiny.numbers(workdir)["stages"] == tiny.numbers(whole)["stages"]


def test_a_torch_file_is_a_source_too(whole, tmp_path):
    """What the converter gives a PyTorch user, wrapped as training scripts wrap it, makes the same run."""
    state = convert.to_state_dict(weights.load(tiny.NETWORK, source_network(settle(tiny.config()))))
    torch_file.write(tmp_path / "net.pth", {f"module.{key}": value for key, value in state.items()})
    run(settle(tiny.config(eval_every=2, **{"source.weights": str(tmp_path / "net.pth")})), tmp_path / "run")
    assert tiny.numbers(tmp_path / "run")["stages"] == tiny.numbers(whole)["stages"]
