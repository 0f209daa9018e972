"""Runs jobs, each in a process of its own, several at a time."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from afa_jax.sweep.jobs import Job
from afa_jax.training import preemption

PATIENCE = 120.0
"""Seconds that a run has to save when the sweep is asked to stop."""

State = Literal["waiting", "running", "finished", "failed"]


@dataclass
class Progress:
    """Where each job is, by its workdir.

    Attributes:
      summaries: of those that are finished.
      faults: what those said that failed.
    """

    jobs: Sequence[Job]
    states: dict[Path, State] = field(default_factory=dict)
    summaries: dict[Path, dict[str, Any]] = field(default_factory=dict)
    faults: dict[Path, str] = field(default_factory=dict)


def run_jobs(
    jobs: Sequence[Job], *, parallel: int, look: Callable[[Progress], None] = lambda progress: None
) -> Progress:
    """Runs what is missing, goes on with what was interrupted, and leaves alone what is finished.

    A run that fails does not stop the others. With several devices in `CUDA_VISIBLE_DEVICES` each of the runs that are
    under way together gets one. What a run says is added to its file in `logs`, in the root of its job.

    Args:
      parallel: how many at a time.
      look: is shown where the jobs are, again and again.

    Raises:
      Stopped: a signal has come; the runs have saved what they did.
    """
    progress = Progress(jobs)
    for job in jobs:
        if summary := job.result():
            progress.summaries[job.workdir] = summary
        progress.states[job.workdir] = "finished" if summary else "waiting"
    waiting = [job for job in jobs if progress.states[job.workdir] == "waiting"]
    working: dict[int, _Working] = {}
    asked_at: float | None = None
    try:
        with preemption.deferred():
            while working or (waiting and not preemption.asked()):
                for slot in range(parallel):
                    if waiting and slot not in working and not preemption.asked():
                        job = waiting.pop(0)
                        working[slot] = _start(job, slot)
                        progress.states[job.workdir] = "running"
                look(progress)
                time.sleep(0.1)
                for slot in [slot for slot, one in working.items() if one.process.poll() is not None]:
                    _end(working.pop(slot), progress)
                if preemption.asked() and asked_at is None:
                    asked_at = time.monotonic()
                    for one in working.values():
                        one.process.terminate()
                elif asked_at and time.monotonic() - asked_at > PATIENCE:
                    for one in working.values():
                        one.process.kill()  # nothing is lost but what came after its last checkpoint
    finally:
        for one in working.values():
            one.process.terminate()
    look(progress)
    return progress


# On Linux the kernel sends SIGTERM to a run when the sweep is gone, however it went, so that it saves and ends too.
_PROGRAM = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"
_ENDS_WITH_PARENT = [sys.executable, "-S", "-c", _PROGRAM] if sys.platform == "linux" else []


class _Working(NamedTuple):
    job: Job
    process: "subprocess.Popen[bytes]"
    log: Path
    begin: int
    """Bytes in the log before the process began."""


def _start(job: Job, slot: int) -> _Working:
    environment = dict(os.environ)
    devices = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    log = job.root / "logs" / f"{'+'.join(job.path)}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*_ENDS_WITH_PARENT, *job.command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which asks the runs to save
        )
        return _Working(job, process, log, file.tell())


def _end(one: _Working, progress: Progress) -> None:
    job, status = one.job, one.process.returncode
    summary = job.result() if status == 0 else None
    if summary:
        progress.summaries[job.workdir], progress.states[job.workdir] = summary, "finished"
    elif preemption.asked():
        progress.states[job.workdir] = "waiting"
    else:
        text = one.log.read_bytes()[one.begin :].decode(errors="replace")
        said = [line for line in text.splitlines() if line.strip()]
        own = [line for line in said if line.startswith("afa_jax: ")]
        sentence = (own or said or ["it said nothing."])[-1].removeprefix("afa_jax: ")
        progress.states[job.workdir] = "failed"
        progress.faults[job.workdir] = f"{sentence} (exit status {status}, {one.log})"
