"""What a run says while it works: JSON lines, TensorBoard event files, a progress bar."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from afa_jax import hosts

METRICS = "metrics.jsonl"


class Journal:
    """Writes `metrics.jsonl` and `tensorboard/` in a run's folder and draws the bar.

    Args:
      workdir: of the run.
      title: of the bar.
      stages: the lengths of the run's stages in steps, by name, in order.
      silent: says nothing.
    """

    def __init__(self, workdir: Path, title: str, stages: Mapping[str, int], *, silent: bool = False):
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=silent)
        self._path, self._title, self._stages = workdir / METRICS, title, dict(stages)
        self._starts = {name: sum(list(stages.values())[:i]) for i, name in enumerate(stages)}
        self.records = read_metrics(self._path)
        """All records so far, oldest first."""
        self._file = self._path.open("a", encoding="utf-8")
        # Event files cannot be cut, so they are written anew from the records.
        self._tensorboard_folder = workdir / "tensorboard"
        self._tensorboard: Any = None
        self._rewritten = False
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._bar = self._progress.add_task(title, values="", visible=False)
        self._progress.start()

    def say(self, sentence: str) -> None:
        """A line for the person at the terminal."""
        self.console.print(sentence, markup=False)

    def begin(self, stage: str, step: int, records: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Goes on after `step` steps of `stage`.

        Lines of later steps, left by an interrupted run, are dropped: the file reads as if nothing had happened.

        Args:
          records: all up to there, as a checkpoint kept them; they stand in for a file that is damaged or lost.
        """
        now = self._starts[stage] + step
        kept = [
            r for r in (self.records if records is None else records) if self._starts[r["stage"]] + r["step"] <= now
        ]
        if not self._rewritten or kept != self.records:
            self._rewrite([dict(record) for record in kept])
        self._progress.reset(
            self._bar,
            description=f"{self._title} · {stage}",
            total=self._stages[stage],
            completed=step,
            visible=True,
            values="",
        )

    def has(self, stage: str, step: int, split: str) -> bool:
        """Whether there is such a line."""
        return any((r["stage"], r["step"], r["split"]) == (stage, step, split) for r in self.records)

    def record(self, stage: str, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds one line with `values` by metric."""
        record = {"stage": stage, "step": step, "split": split, **values}
        self.records.append(record)
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()  # for those who look on
        self._to_tensorboard([record] if self._tensorboard else self.records)

    def flush(self) -> None:
        """Brings the lines to the disk, so that a checkpoint never knows more than the journal."""
        os.fsync(self._file.fileno())

    def advance(self, step: int, loss: float, top1: float, images_per_second: float) -> None:
        """Moves the bar."""
        values = f"loss {loss:.3f}  top-1 {100 * top1:5.1f} %  {images_per_second:,.0f} images/s"
        self._progress.update(self._bar, completed=step, values=values)

    def close(self) -> None:
        self._progress.stop()
        self._file.close()
        if self.records and self._rewritten and not self._tensorboard:
            self._to_tensorboard(self.records)
        if self._tensorboard:
            self._tensorboard.close()

    def _rewrite(self, records: list[dict[str, Any]]) -> None:
        self._file.close()
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        os.replace(partial, self._path)
        self.records = records
        self._file = self._path.open("a", encoding="utf-8")
        if self._tensorboard:
            self._tensorboard.close()
        shutil.rmtree(self._tensorboard_folder, ignore_errors=True)
        self._tensorboard, self._rewritten = None, True

    def _to_tensorboard(self, records: Sequence[Mapping[str, Any]]) -> None:
        if not self._tensorboard:
            # Not before there is something to write: where PyTorch is installed, it is imported too.
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(str(self._tensorboard_folder))
        for record in records:
            step = self._starts[record["stage"]] + record["step"]
            for key, value in record.items():
                if key not in ("stage", "step", "split"):
                    self._tensorboard.add_scalar(f"{record['split']}/{key}", value, step)


@contextmanager
def opened(workdir: Path, title: str, stages: Mapping[str, int]) -> Iterator[Journal]:
    """The journal of a run, closed at the end; that of another host than the first is silent and thrown away."""
    if hosts.first():
        with closing(Journal(workdir, title, stages)) as journal:
            yield journal
    else:
        with TemporaryDirectory() as scratch, closing(Journal(Path(scratch), title, stages, silent=True)) as journal:
            yield journal


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a journal, up to a line that a kill cut short."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not isinstance(record, dict) or not {"stage", "step", "split"} <= record.keys():
                break
            records.append(record)
    return records
