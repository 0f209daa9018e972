"""Runs jobs, each in a process of its own, several at a time."""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from afa_jax.sweep.jobs import Job
from afa_jax.training import preemption

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
    jobs: Sequence[Job], *, parallel: int, logs: Path, look: Callable[[Progress], None] = lambda progress: None
) -> Progress:
    """Runs what is missing, goes on with what was interrupted, and leaves alone what is finished.

    A run that fails does not stop the others. With several devices in `CUDA_VISIBLE_DEVICES` each of the runs that are
    under way together gets one.

    Args:
      parallel: how many at a time.
      logs: a folder, in which each run has a file for all that it says.
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
    working: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    told: set[Path] = set()
    try:
        with preemption.deferred():
            while working or (waiting and not preemption.asked()):
                for slot in range(parallel):
                    if waiting and slot not in working and not preemption.asked():
                        job = waiting.pop(0)
                        working[slot] = job, _start(job, slot, logs)
                        progress.states[job.workdir] = "running"
                look(progress)
                time.sleep(0.1)
                for slot, (job, process) in list(working.items()):
                    if process.poll() is not None:
                        del working[slot]
                        _end(job, process.returncode, progress, logs)
                    elif preemption.asked() and job.workdir not in told:
                        told.add(job.workdir)
                        process.terminate()
    finally:
        for _, process in working.values():
            process.terminate()
    look(progress)
    return progress


def _log(logs: Path, job: Job) -> Path:
    return logs / f"{'+'.join(job.path)}.log"


def _start(job: Job, slot: int, logs: Path) -> "subprocess.Popen[bytes]":
    environment = dict(os.environ)
    devices = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    logs.mkdir(parents=True, exist_ok=True)
    with _log(logs, job).open("wb") as log:
        # In a session of its own: Ctrl-C reaches the sweep, which then asks the runs to save.
        return subprocess.Popen(
            job.command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def _end(job: Job, status: int, progress: Progress, logs: Path) -> None:
    summary = job.result() if status == 0 else None
    if summary:
        progress.summaries[job.workdir], progress.states[job.workdir] = summary, "finished"
    elif preemption.asked():
        progress.states[job.workdir] = "waiting"
    else:
        log = _log(logs, job)
        said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        own = [line for line in said if line.startswith("afa_jax: ")]
        sentence = (own or said or ["it said nothing."])[-1].removeprefix("afa_jax: ")
        progress.states[job.workdir] = "failed"
        progress.faults[job.workdir] = f"{sentence} (exit status {status}, {log})"
