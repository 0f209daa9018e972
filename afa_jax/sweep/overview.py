"""What a person sees while a sweep works: a table that is drawn anew, or a line a run where there is no terminal."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from afa_jax.measures import last, told
from afa_jax.report.tables import spread
from afa_jax.sweep.jobs import Job
from afa_jax.sweep.work import Progress, State

REFRESH = 0.5
"""Seconds between two looks at the journals of the runs."""


class Overview:
    """Is called with where the jobs are, again and again."""

    def __init__(self, title: str, console: Console, live: Live | None):
        self._title, self._console, self._live = title, console, live
        self._begun, self._drawn, self._told = time.monotonic(), 0.0, set[Path]()
        self._before = -1

    def __call__(self, progress: Progress) -> None:
        ended = [job for job in progress.jobs if progress.states[job.workdir] in ("finished", "failed")]
        if self._before < 0:
            self._before = len(ended)  # finished before
            self._told = {job.workdir for job in ended}
            self._console.print(
                f"{self._title}: {len(progress.jobs)} runs, {self._before} of them finished already.", soft_wrap=True
            )
        for job in ended:
            if job.workdir not in self._told:
                self._told.add(job.workdir)
                told = f"[{len(self._told)}/{len(progress.jobs)}] {_outcome(job, progress)}"
                self._console.print(told, markup=False, soft_wrap=True)
        if self._live and (time.monotonic() - self._drawn > REFRESH or len(ended) == len(progress.jobs)):
            self._drawn = time.monotonic()
            self._live.update(self._draw(progress, len(ended)), refresh=True)

    def _draw(self, progress: Progress, ended: int) -> Group:
        table = Table(box=None, pad_edge=False)
        table.add_column("run")
        table.add_column("finished", justify="right")
        table.add_column("result (%)", justify="right")
        table.add_column("under way")
        rows: dict[tuple[str, ...], list[Job]] = {}
        for job in progress.jobs:
            rows.setdefault(job.path[:-1], []).append(job)
        # The unfinished first, for not all may find room.
        order = sorted(rows, key=lambda path: all(_state(job, progress) == "finished" for job in rows[path]))
        room = max(3, self._console.height - 6)
        for path in order[:room]:
            table.add_row(*_row(path, rows[path], progress))
        more = [Text(f"… and {len(order) - room} more")] if len(order) > room else []
        return Group(table, *more, Text(self._summary(progress, ended)))

    def _summary(self, progress: Progress, ended: int) -> str:
        states = list(progress.states.values())
        counts = ", ".join(f"{states.count(state)} {state}" for state in ("finished", "running", "waiting", "failed"))
        done = ended - self._before
        if not done or ended == len(states):
            return counts
        left = (time.monotonic() - self._begun) / done * (len(states) - ended)
        return f"{counts}; about {_duration(left)} left"


def _state(job: Job, progress: Progress) -> State:
    return progress.states[job.workdir]


def _outcome(job: Job, progress: Progress) -> str:
    name = " ".join(job.path)
    if fault := progress.faults.get(job.workdir):
        return f"{name} failed: {fault}"
    return f"{name}: {told(progress.summaries[job.workdir])}"


def _row(path: Sequence[str], jobs: Sequence[Job], progress: Progress) -> tuple[str, str, str, Table | str]:
    values = [last(progress.summaries[job.workdir]) for job in jobs if job.workdir in progress.summaries]
    failed = sum(_state(job, progress) == "failed" for job in jobs)
    counted = f"{len(values)}/{len(jobs)}" + (f", {failed} failed" if failed else "")
    bars = Table.grid(padding=(0, 1))
    running = [job for job in jobs if _state(job, progress) == "running"]
    for job in running:
        bars.add_row(job.path[-1], ProgressBar(total=1, completed=job.progress(), width=20))
    return " ".join(path), counted, spread(values), bars if running else ""


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"


@contextmanager
def overview(title: str, console: Console) -> Iterator[Overview]:
    """For the time of a sweep."""
    if not console.is_terminal:
        yield Overview(title, console, None)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield Overview(title, console, live)
