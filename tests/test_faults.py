"""What machines do to a run, each for itself; `docs/faults.md` is the table of all."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from afa_jax import experiment
from afa_jax.config import settle
from afa_jax.errors import UserError
from afa_jax.experiment import run
from afa_jax.files import cache_folder
from afa_jax.models import weights
from afa_jax.training import loop, preemption
from afa_jax.training.journal import read_metrics
from tests import processes, tiny

ROOT = Path(__file__).parents[1]
SETTINGS = {"eval_every": 2}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    run(settle(tiny.config(**SETTINGS)), workdir)
    return workdir


def assert_same(workdir, expected):
    mine, other = (tiny.numbers(d) for d in (workdir, expected))
    del mine["experiment"], other["experiment"]  # how often it saved, for example
    assert mine == other
    assert read_metrics(workdir / "metrics.jsonl") == read_metrics(expected / "metrics.jsonl")
    models = (weights.load(tiny.NETWORK, d / "model") for d in (workdir, expected))
    jax.tree.map(np.testing.assert_array_equal, *models)


def test_sigterm_saves_the_step_and_the_same_command_goes_on(undisturbed, tmp_path):
    workdir, config = tmp_path / "run", processes.config(tmp_path, checkpoint_every=1000, **SETTINGS)
    process = processes.start(config, workdir)
    processes.wait_for_lines(workdir, 2, process)
    process.send_signal(signal.SIGTERM)
    assert processes.wait(process) == [preemption.STOPPED]
    assert processes.said(workdir).endswith("stopped by SIGTERM; the same command goes on where this one ended.\n")
    saved = {int(f.name) for f in (workdir / "checkpoints").glob("*/*")}
    assert len(saved) == 1 and saved <= {2, 3, 4}  # no step that was due
    assert processes.wait(processes.start(config, workdir)) == [0]
    assert f"goes on after step {saved.pop()} of stage ast" in processes.said(workdir)
    assert_same(workdir, undisturbed)


def test_sigterm_while_it_starts(tmp_path):
    """Between two steps nothing is to be finished."""
    asked = f"""
import os, signal, sys
from afa_jax import main
main.settle = lambda config: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(main.main(["main", "--config={processes.config(tmp_path)}", "--workdir={tmp_path / "run"}"]))
"""
    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == preemption.STOPPED
    assert done.stderr == "afa_jax: stopped by SIGTERM; the same command goes on where this one ended.\n"
    assert not (tmp_path / "run").exists()


@pytest.fixture
def listening(monkeypatch):
    """SIGTERM as `main` has it; `deferred` must not outlive a test."""
    before = signal.getsignal(signal.SIGTERM)
    for flag in ("_asked", "_raised"):
        monkeypatch.setattr(preemption, flag, False)
    preemption.listen()
    yield
    signal.signal(signal.SIGTERM, before)
    assert not preemption._deferred


def test_a_signal_waits_for_the_end_of_what_must_not_be_cut(listening):
    done = []
    with pytest.raises(preemption.Stopped), preemption.deferred():
        with preemption.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("inner")
        done.append("outer")
        assert preemption.asked()
    assert done == ["inner", "outer"]
    os.kill(os.getpid(), signal.SIGTERM)  # while the first is ending the process
    with pytest.raises(ValueError, match="its own"), preemption.deferred():
        raise ValueError("its own")


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_the_step_under_way_is_the_last(listening, undisturbed, tmp_path, monkeypatch, at):
    """Asked during step `at` of stage I: the state after it is saved, and stage II does not begin.

    An evaluation that is due then is made up for when the run goes on.
    """
    honest = loop.Journal.advance

    def ask(self, step, *rest):
        honest(self, step, *rest)
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Journal, "advance", ask)
    with pytest.raises(preemption.Stopped):
        run(settle(tiny.config(checkpoint_every=1000, **SETTINGS)), tmp_path / "run")
    saved = sorted(int(f.name) for f in (tmp_path / "run" / "checkpoints").glob("*/*"))
    assert saved == [at]
    tests = [r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["split"] == "test"]
    assert tests == {1: [], 2: [], 3: [2], 4: [2, 4]}[at]
    monkeypatch.setattr(loop.Journal, "advance", honest)
    for flag in ("_asked", "_raised"):
        monkeypatch.setattr(preemption, flag, False)
    run(settle(tiny.config(checkpoint_every=1000, **SETTINGS)), tmp_path / "run")
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_a_disk_that_fills_up_costs_no_checkpoint(undisturbed, tmp_path):
    """No file may grow beyond 10 kB, as if the disk were full; a checkpoint takes more."""
    workdir, config = tmp_path / "run", processes.config(tmp_path, **SETTINGS)
    process = processes.start(config, workdir)
    processes.wait_for_lines(workdir, 3, process)
    process.send_signal(signal.SIGTERM)
    assert processes.wait(process) == [preemption.STOPPED]
    before = sorted(str(f.relative_to(workdir)) for f in (workdir / "checkpoints").glob("*/*"))

    assert processes.wait(processes.start(config, workdir, largest_file=10_240)) == [2]
    said = [line for line in processes.said(workdir).splitlines() if line.startswith("afa_jax: ")]  # libraries say more
    assert len(said) == 1
    assert re.match(r"afa_jax: A checkpoint cannot be written to .*-a[sc]t \(File too large\): mend that", said[0])
    whole = sorted(str(f.relative_to(workdir)) for f in (workdir / "checkpoints").glob("*/*") if f.name.isdigit())
    assert set(before) <= set(whole)

    assert processes.wait(processes.start(config, workdir)) == [0]
    assert "is removed" not in processes.said(workdir)
    assert_same(workdir, undisturbed)


def test_a_disk_that_is_full_at_the_journal_is_a_sentence(undisturbed, tmp_path):
    """The error of a write names no file."""
    fail = f"""
import os
from afa_jax.training.journal import Journal
def fail(self): raise OSError({errno.ENOSPC}, os.strerror({errno.ENOSPC}))
Journal.flush = fail
"""
    process = processes.start(processes.config(tmp_path, **SETTINGS), tmp_path / "run", sabotage=fail)
    assert processes.wait(process) == [2]
    last = processes.said(tmp_path / "run").splitlines()[-1]
    assert last == "afa_jax: A file of the run cannot be written or read: No space left on device."


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("told_in_text", [False, True])
def test_whatever_the_disk_has_against_a_checkpoint_is_a_sentence(tmp_path, monkeypatch, number, told_in_text):
    def fail(*_, **__):
        cause = OSError(number, os.strerror(number), "file")
        raise ValueError(f"OUT_OF_RANGE: {os.strerror(number)} [os_error_code]") if told_in_text else cause

    source = experiment.source_network(settle(tiny.config()))
    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    with pytest.raises(UserError, match=rf"A checkpoint cannot be written to .* \({os.strerror(number)}\)"):
        run(settle(tiny.config(**{"source.weights": str(source)})), tmp_path / "run")


def test_a_fault_of_our_own_keeps_its_traceback(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no such thing")

    source = experiment.source_network(settle(tiny.config()))
    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    with pytest.raises(ValueError, match="no such thing"):
        run(settle(tiny.config(**{"source.weights": str(source)})), tmp_path / "run")


def lose(journal):
    journal.unlink()


def damage(journal):
    journal.write_bytes(b"\x00{" + journal.read_bytes()[40:])


@pytest.mark.parametrize("harm", [lose, damage])
def test_a_lost_journal_comes_back_from_the_checkpoints(undisturbed, tmp_path, harm):
    """At once stopped in stage II, and finished but for its summary."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    (workdir / "summary.json").unlink()
    shutil.rmtree(workdir / "model")
    harm(workdir / "metrics.jsonl")
    run(settle(tiny.config(**SETTINGS)), workdir)
    assert_same(workdir, undisturbed)

    shutil.rmtree(workdir / "checkpoints" / "2-act" / "4")
    (workdir / "summary.json").unlink()
    harm(workdir / "metrics.jsonl")
    run(settle(tiny.config(**SETTINGS)), workdir)
    assert_same(workdir, undisturbed)


def pictures(folder):
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for number in range(2):
            (folder / split / f"class{number}").mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (12, 12, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / f"class{number}" / f"{i}.png")


@pytest.mark.slow
def test_a_vanished_data_cache_changes_nothing(tmp_path, monkeypatch):
    pictures(tmp_path / "photos")
    settings = {"data.name": "image_folder", "data.dir": str(tmp_path / "photos"), "data.per_class": 0}
    wanted = settle(tiny.config(**settings, **SETTINGS))
    experiment._load.cache_clear()
    run(wanted, tmp_path / "undisturbed")

    honest, removed = loop.train_batch, []

    def remove_and_read(*arguments, **settings):
        if not removed:
            removed.extend(cache_folder().glob("images/*"))
            shutil.rmtree(cache_folder() / "images")
        return honest(*arguments, **settings)

    experiment._load.cache_clear()
    monkeypatch.setattr(loop, "train_batch", remove_and_read)
    run(wanted, tmp_path / "vanished")
    assert removed and not (cache_folder() / "images").exists()
    assert_same(tmp_path / "vanished", tmp_path / "undisturbed")

    experiment._load.cache_clear()  # as in a new process
    monkeypatch.setattr(loop, "train_batch", honest)
    run(wanted, tmp_path / "again")
    assert list(cache_folder().glob("images/*"))
    assert_same(tmp_path / "again", tmp_path / "undisturbed")


def test_a_second_run_in_the_same_workdir_is_refused(undisturbed, tmp_path):
    workdir, config = tmp_path / "run", processes.config(tmp_path, **SETTINGS)
    first = processes.start(config, workdir)
    processes.wait_for_lines(workdir, 1, first)
    first.send_signal(signal.SIGSTOP)  # so that it is surely still there
    second = subprocess.run(
        [sys.executable, "-m", "afa_jax.main", f"--config={config}", f"--workdir={workdir}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert second.stderr.startswith("afa_jax: Another process is at work in ") and second.stderr.count("\n") == 1
    assert processes.wait(first) == [0]
    assert_same(workdir, undisturbed)


@pytest.mark.slow
def test_a_run_survives_kill_upon_kill(tmp_path):
    """The short form of tools/soak.py."""
    config = processes.config(tmp_path, steps=60, **SETTINGS)
    command = [sys.executable, "tools/soak.py", f"--config={config}", "--kills=5", f"--workdir={tmp_path / 'soak'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills" in done.stdout and "Summary, journal and model are the same." in done.stdout


def rows():
    table = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    return [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][1:]


def test_every_row_of_the_table_of_faults_has_its_test():
    """And those that do not run every day are marked."""
    defined = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(rows()) > 15
    for *_, cell in rows():
        name, star = re.fullmatch(r" `(\w+)`(\*?) ", cell).groups()
        before, found, _ = defined.partition(f"\ndef {name}(")
        assert found, f"docs/faults.md names {name}, which is no test"
        assert ("@pytest.mark.slow\n" in f"{before}\n".rsplit("\n\n\n", 1)[-1]) == bool(star), name
