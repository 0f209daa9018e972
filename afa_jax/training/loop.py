"""One stage from its first step, or the step it was stopped at, to its last."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from afa_jax import hosts
from afa_jax.data.batches import train_batch
from afa_jax.data.dataset import Split
from afa_jax.data.prefetch import prefetch
from afa_jax.errors import DivergedError
from afa_jax.training import preemption
from afa_jax.training.checkpoint import Checkpoints
from afa_jax.training.journal import Journal
from afa_jax.training.parallel import STOP, Devices
from afa_jax.training.step import Metrics, Step, TrainState
from afa_jax.transfer.method import Frozen
from afa_jax.transfer.recipes import Stage
from afa_jax.types import Batch


@dataclass(frozen=True)
class Cadence:
    """Steps between two lines of the journal, evaluations (0: at the stage's end only) and checkpoints."""

    log: int
    evaluation: int
    checkpoint: int

    def due(self, every: int, step: int, last: int) -> bool:
        return step == last or (every > 0 and step % every == 0)


@dataclass
class Pace:
    """Training speed, with evaluation, checkpoints and the first (compiling) step left out.

    `waited` are those of the seconds in which the next batch was not there yet.
    """

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def waiting_share(self) -> float:
        return self.waited / self.seconds if self.seconds else 0.0


@preemption.deferred()
def train_stage(
    step_fn: Step,
    state: TrainState,
    frozen: Frozen,
    stage: Stage,
    split: Split,
    *,
    devices: Devices,
    batch_size: int,
    seed: int,
    source: Split | None,
    cadence: Cadence,
    journal: Journal,
    checkpoints: Checkpoints,
    evaluate: Callable[[TrainState], Mapping[str, float]],
    pace: Pace,
) -> TrainState:
    """Runs the steps that are left.

    A step's lines are on disk before its checkpoint is, so that a run stopped anywhere goes on without a gap.

    Args:
      devices: on which state and frozen lie, and `step_fn` runs.
      seed: of the order of the images.
      source: images of the source task, of which a batch rides along with each step.
      evaluate: gives the test split's metrics.
      pace: is added to.

    Raises:
      DivergedError: a loss or gradient is not finite, noticed at most one step late and before any checkpoint.
      Stopped: this host, or another, was asked to stop; the state after the last step done is saved.
    """
    first = int(state.step)
    last = stage.steps
    journal.begin(stage.name, first)
    values: dict[str, float] = {}
    unread: tuple[int, Metrics] | None = None

    def stop_flag() -> Batch:
        asked = np.full(jax.local_device_count(), preemption.asked(), np.float32)
        return devices.spread({STOP: asked}) if several else {}

    def test() -> None:
        values = _finite(stage, int(state.step), evaluate(state), "on the test split")
        journal.record(stage.name, int(state.step), "test", values)

    if first and cadence.due(cadence.evaluation, first, last) and not journal.has(stage.name, first, "test"):
        test()  # which the run had no time for when it was asked to stop
    load = partial(_load, split, source, batch_size, seed, devices.part)
    places = range(stage.first_batch + first, stage.first_batch + last)
    several, stop = hosts.count() > 1, False
    started = time.perf_counter()
    for done, batch in enumerate(prefetch(load, places, devices.spread), first + 1):
        waited = time.perf_counter() - started
        state, metrics = step_fn(state, frozen, {**batch, **stop_flag()})
        log, evaluation, save = (
            cadence.due(every, done, last) for every in (cadence.log, cadence.evaluation, cadence.checkpoint)
        )
        # Reading a step's metrics only when the next one is under way keeps the device busy.
        ready = [unread] if unread else []
        unread = (done, metrics)
        if log or evaluation or save or done == first + 1:
            ready, unread = [*ready, (done, metrics)], None
        for step, read in ready:
            values = _finite(stage, step, {name: float(np.asarray(value)) for name, value in read.items()})
            stop = values.pop(STOP, 0.0) > 0
            journal.advance(step, values["loss"], values["top1"], pace.images_per_second)
        # Several hosts must stop at the same step: they go by the metrics, which are the same for all.
        stop = stop if several else preemption.asked()
        if done > first + 1:
            pace.images += batch_size
            pace.seconds += time.perf_counter() - started
            pace.waited += waited
        if log:
            journal.record(stage.name, done, "train", values)
        if evaluation and (done == last or not stop):
            test()
        if save or stop:
            # The metrics are those before the step's move; what is kept must be good after it.
            _finite(stage, done, {"parameters": _fault(state)})
            journal.flush()
            checkpoints.save(state, journal.records)
        if stop:
            raise preemption.Stopped
        started = time.perf_counter()
    return state


def _load(
    split: Split, source: Split | None, batch_size: int, seed: int, part: tuple[int, int], place: int
) -> dict[str, Any]:
    """This host's part of the batch at a place of the run's order, and beside it that of the source task."""
    batch: dict[str, Any] = train_batch(split, batch_size, place, seed, part=part)
    if source is not None:
        batch["source"] = train_batch(source, batch_size, place, seed, purpose="source order", part=part)
    return batch


@jax.jit  # one program a shape: one for the whole state would take as long to compile as an evaluation
def _all_finite(x: jax.Array) -> jax.Array:
    return jnp.isfinite(x).all()


def _fault(state: TrainState) -> float:
    """0 where every number of the state is finite, else NaN."""
    checks = [_all_finite(leaf) for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return 0.0 if all(jax.device_get(checks)) else math.nan


def _finite(stage: Stage, step: int, values: Mapping[str, float], where: str = "in training") -> dict[str, float]:
    """The values as they are, if all are finite."""
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        # The sums name nothing that their parts do not name better.
        parts = [name for name in wrong if name not in ("loss", "alignment", "gradient_norm")] or wrong
        alpha = stage.settings["alpha"]
        cause = f"methods.{stage.name}.alpha (now {alpha:g}) or learning_rate" if alpha else "learning_rate"
        raise DivergedError(
            f"The loss is no longer a finite number at step {step} of stage {stage.name} {where}: {', '.join(parts)} "
            f"{'is' if len(parts) == 1 else 'are'} {values[parts[0]]}; lower {cause} and start in a new workdir. "
            "Checkpoints of earlier steps are kept."
        )
    return dict(values)
