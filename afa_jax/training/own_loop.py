"""A method's training step for a person's own loop, without a config, a data set or a workdir."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
from flax.core import FrozenDict
from jax import Array

from afa_jax.batch_axis import WHOLE, BatchAxis
from afa_jax.data.augment import Preprocess
from afa_jax.errors import UserError, nearest
from afa_jax.training.objective import Task
from afa_jax.training.optimizer import Sgd
from afa_jax.training.step import Step, TrainState, init_state, make_step
from afa_jax.transfer.method import Anatomy, Frozen, no_constants
from afa_jax.transfer.methods import METHODS
from afa_jax.transfer.methods.features import measure_energy
from afa_jax.transfer.recipes import Stage
from afa_jax.types import PyTree, Variables


@dataclass(frozen=True)
class _AsTheyAre(Preprocess):
    """Images that are augmented and normalised already."""

    def train(self, key: Array, images: Array, axis: BatchAxis = WHOLE) -> Array:
        return images

    def test(self, images: Array) -> Array:
        return images


_UNCHANGED = _AsTheyAre(0, flip=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Init(Protocol):
    def __call__(
        self,
        key: Array,
        variables: Variables,
        teacher: Variables,
        images: Array,
        constants: Mapping[str, PyTree] | None = None,
    ) -> tuple[TrainState, Frozen]:
        """The state before the first step, and what no step changes.

        Args:
          key: of the attention, and of what happens in the steps.
          variables: the target's, which are copied.
          teacher: the teacher's.
          images: at least one, as in a batch, for the shapes of the features.
          constants: what the method measures beforehand, where it does: DELTA's `{"channels": {tap: [C]}}`.
        """
        ...


class TrainStep(NamedTuple):
    """What a loop is made of; both are pure, and `step` may be compiled with `jax.jit(step, donate_argnums=0)`."""

    init: Init
    step: Step
    """(state, frozen, batch) to (state, metrics); a batch has `image` and `label`. The trained network is
    `state.params["target"]` and `state.batch_stats`."""


def make_train_step(
    target: nn.Module,
    teacher: nn.Module | None = None,
    *,
    taps: tuple[str, ...],
    head: str,
    method: str = "ast",
    steps: int,
    learning_rate: float = 0.01,
    drop_at: int | None = None,
    drop: float = 0.1,
    momentum: float = 0.9,
    convention: str = "released",
    preprocess: Preprocess | None = None,
    **settings: Any,
) -> TrainStep:
    """One method's step: cross-entropy + alpha·Ω + beta·½·‖head‖² (AFA eq. 4) and one move of SGD.

    For the second stage of AFA make another with `method="act"`, and give the first's result as the teacher.

    Args:
      target: called as `target(images, train=…)`.
      teacher: where its head is of another size than the target's; otherwise the same module.
      taps: paths of the layers that are aligned, parts joined by dots; each gives a map or tokens.
      head: path of the classification layer.
      method: in `transfer.methods.METHODS`.
      drop_at: the step at which the rate is multiplied by `drop`; None: after two thirds.
      convention: the scale of the losses: `released`, `paper`, or `normalised`, for which the constants must have
        `energy`.
      preprocess: from the batch's uint8 images to what the network sees; None: the batch's images are that already.
      settings: the method's, in place of its defaults: `alpha`, `beta`, `weight_decay`, …

    Raises:
      UserError: no method has that name, or it has no such setting.
    """
    if method not in METHODS:
        raise UserError(f"There is no method {method!r}; {nearest(method, METHODS)}")
    chosen = METHODS[method]
    for key in settings:
        if key not in chosen.settings:
            raise UserError(f"The method {method} has no setting {key!r}; {nearest(key, chosen.settings)}")
    stage = Stage(
        chosen,
        settings=FrozenDict({**chosen.settings, **settings, "convention": convention}),
        steps=steps,
        learning_rate=learning_rate,
        drop_at=2 * steps // 3 if drop_at is None else drop_at,
        drop=drop,
        taps=tuple(taps),
    )
    anatomy = Anatomy(head, (head,), head)
    task = Task(target, teacher or target, anatomy, stage, preprocess or _UNCHANGED, Sgd(momentum))

    def init(
        key: Array,
        variables: Variables,
        teacher: Variables,
        images: Array,
        constants: Mapping[str, PyTree] | None = None,
    ) -> tuple[TrainState, Frozen]:
        measures = chosen.prepare not in (no_constants, measure_energy) or convention == "normalised"
        if chosen.prepare is not no_constants and measures and not constants:
            raise UserError(f"The method {method} measures something before its first step: give init its constants.")
        frozen = Frozen(teacher, dict(constants or {}))
        return init_state(task, variables, frozen, images, key), frozen

    return TrainStep(init, make_step(task))
