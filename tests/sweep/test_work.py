"""Runs as processes: how many at a time, what becomes of those that fail, and what a signal does."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from afa_jax.sweep.work import run_jobs
from afa_jax.training import preemption

WORK = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1]); folder.mkdir(parents=True, exist_ok=True)
(folder / "begun").write_text(json.dumps([time.time(), os.environ.get("CUDA_VISIBLE_DEVICES", "")]))
"""
FINISH = """
time.sleep(0.3)
(folder / "ended").write_text(str(time.time()))
(folder / "summary.json").write_text('{"last_top1": 0.5}')
"""
FAIL = """
print("something else"); print("afa_jax: Lower the rate.", file=sys.stderr); sys.exit(2)
"""


@dataclass(frozen=True)
class Job:
    """Stands in for a run: `does` is what its process executes."""

    root: Path
    path: tuple[str, ...]
    does: str = FINISH

    @property
    def workdir(self):
        return self.root.joinpath(*self.path)

    @property
    def command(self):
        return [sys.executable, "-S", "-c", WORK + self.does, str(self.workdir)]

    def result(self):
        file = self.workdir / "summary.json"
        return json.loads(file.read_text()) if file.exists() else None


def times(job):
    begun, device = json.loads((job.workdir / "begun").read_text())
    return begun, float((job.workdir / "ended").read_text()), device


@pytest.mark.parametrize("parallel", [1, 3])
def test_so_many_at_a_time(parallel, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    jobs = [Job(tmp_path, ("l2", f"seed{k}")) for k in range(5)]
    progress = run_jobs(jobs, parallel=parallel)
    assert set(progress.states.values()) == {"finished"} and len(progress.summaries) == 5
    spans = [times(job) for job in jobs]
    together = max(sum(begun <= moment < ended for begun, ended, _ in spans) for moment, *_ in spans)
    assert together == parallel
    assert {device for *_, device in spans} == ({"4"} if parallel == 1 else {"4", "7"})


def test_a_failure_is_told_and_stops_no_other(tmp_path):
    jobs = [Job(tmp_path, (name, "seed0"), does) for name, does in (("a", FAIL), ("b", FINISH), ("c", "os.abort()"))]
    seen = []
    progress = run_jobs(jobs, parallel=1, look=lambda p: seen.append(dict(p.states)))
    assert list(progress.states.values()) == ["failed", "finished", "failed"]
    first, last = (progress.faults[jobs[k].workdir] for k in (0, 2))
    assert first == f"Lower the rate. (exit status 2, {tmp_path}/logs/a+seed0.log)"
    assert last.startswith("it said nothing. (exit status -6")
    assert "something else" in (tmp_path / "logs" / "a+seed0.log").read_text()
    assert list(seen[0].values()) == ["running", "waiting", "waiting"] and seen[-1] == progress.states


def test_a_status_of_0_without_a_summary_is_a_failure(tmp_path):
    job = Job(tmp_path, ("a",), "print('all well')")
    assert run_jobs([job], parallel=1).states[job.workdir] == "failed"


def test_what_is_finished_is_left_alone(tmp_path):
    jobs = [Job(tmp_path, (name,)) for name in "ab"]
    run_jobs(jobs[:1], parallel=1)
    before = times(jobs[0])
    progress = run_jobs(jobs, parallel=2)
    assert times(jobs[0]) == before and progress.summaries.keys() == {job.workdir for job in jobs}


SAVE = """
import signal
signal.signal(signal.SIGTERM, lambda *_: ((folder / "saved").write_text("x"), sys.exit(75)))
(folder / "listens").touch()
time.sleep(60)
"""


def test_a_signal_lets_the_runs_save_and_begins_no_other(tmp_path, monkeypatch):
    for name in ("_asked", "_raised"):
        monkeypatch.setattr(preemption, name, False)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    preemption.listen(signal.SIGINT)
    jobs = [Job(tmp_path, (name,), SAVE) for name in "abc"]

    def interrupt():
        while not all((job.workdir / "listens").exists() for job in jobs[:2]):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    helper = threading.Thread(target=interrupt)
    helper.start()
    try:
        with pytest.raises(preemption.Stopped):
            run_jobs(jobs, parallel=2)
    finally:
        helper.join()
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert [(job.workdir / "saved").exists() for job in jobs] == [True, True, False]
    assert not jobs[2].workdir.exists()


def test_jobs_of_two_roots_say_what_they_say_in_files_of_their_own(tmp_path):
    jobs = [Job(tmp_path / root, ("l2",), f'print("from {root}"); sys.exit(2)') for root in ("dogs", "birds")]
    progress = run_jobs(jobs, parallel=2)
    assert [progress.faults[job.workdir].split(" (")[0] for job in jobs] == ["from dogs", "from birds"]


def test_what_an_earlier_attempt_said_is_kept_and_not_told_again(tmp_path):
    run_jobs([Job(tmp_path, ("a",), FAIL)], parallel=1)
    again = Job(tmp_path, ("a",), "sys.exit(3)")
    assert "it said nothing. (exit status 3" in run_jobs([again], parallel=1).faults[again.workdir]
    assert "Lower the rate." in (tmp_path / "logs" / "a.log").read_text()


KILLED = """
import sys
from pathlib import Path
from afa_jax.sweep.work import run_jobs
from tests.sweep.test_work import SAVE, Job
run_jobs([Job(Path(sys.argv[1]), ("a",), SAVE)], parallel=1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells a process that its parent is gone on Linux only")
def test_a_sweep_that_is_killed_leaves_no_run_behind(tmp_path):
    root = Path(__file__).parents[2]
    killed = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root)
    while not (tmp_path / "a" / "listens").exists():
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    deadline = time.monotonic() + 20
    while not (tmp_path / "a" / "saved").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


DEAF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / "listens").touch()
time.sleep(60)
"""


def test_a_run_that_does_not_save_in_time_is_killed(tmp_path, monkeypatch):
    for name, value in (("_asked", True), ("_raised", True)):
        monkeypatch.setattr(preemption, name, value)
    monkeypatch.setattr("afa_jax.sweep.work.PATIENCE", 0.2)
    monkeypatch.setattr(preemption, "asked", lambda: (tmp_path / "a" / "listens").exists())
    deaf = Job(tmp_path, ("a",), DEAF)
    begun = time.monotonic()
    with contextlib.suppress(preemption.Stopped):
        run_jobs([deaf], parallel=1)
    assert time.monotonic() - begun < 30
