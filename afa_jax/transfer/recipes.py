"""Recipes: which methods a run goes through, where each stage begins, and from whom its teacher comes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from afa_jax import trees
from afa_jax.transfer.method import Method, Need
from afa_jax.transfer.methods import METHODS
from afa_jax.types import Variables

Origin = Literal["source", "previous"]


@dataclass(frozen=True)
class Leg:
    """What a recipe says of one of its stages.

    Attributes:
      method: a name in `METHODS`.
      share: of the run's steps. The shares of the stages whose result is kept make up 1.
      start: the target starts from what the stage before trained (`previous`) or from the `source` network's weights
        and a new head; then only what the stage before let `Method.prepare` measure is kept of it.
      teacher: what the stage before trained (AFA Algorithm 1, line 7) or the `source` network. The first stage starts
        from the source network and has it as its teacher in either case.
      full_rate: the learning rate starts anew, in place of going on from where the stage before left it (AFA §5.2). It
        does so always where the target does.
      measures: the stage on whose result `Method.prepare` measures, counted from the first; -1: on the one before.
    """

    method: str
    share: float = 1.0
    start: Origin = "previous"
    teacher: Origin = "previous"
    full_rate: bool = False
    measures: int = -1


@dataclass(frozen=True)
class Recipe:
    """A named sequence of stages; the target starts from the `source` network (Algorithm 1, line 2) or at `random`."""

    legs: tuple[Leg, ...]
    start: Literal["source", "random"] = "source"

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(leg.method for leg in self.legs)


_HEAD = Leg("l2_fe", 0.2)
"""A head for the target task on the source's features."""


def _alone(method: Method) -> Recipe:
    """The method itself, and before it, thrown away, what it needs to measure."""
    if method.first is None:
        return Recipe((Leg(method.name),))
    first = _HEAD if method.first == _HEAD.method else Leg(method.first)
    return Recipe((first, Leg(method.name, start="source", teacher="source")))


RECIPES: dict[str, Recipe] = {
    # What the small labelled set alone gives, as the yardstick of every transfer.
    "scratch": Recipe((Leg("l2"),), start="random"),
    **{name: _alone(method) for name, method in METHODS.items()},
    # The new head is warmed up alone, then all learns (Li and Hoiem 2016, §3).
    "lwf": Recipe((_HEAD, Leg("lwf", 0.8, teacher="source", full_rate=True))),
    # Spatial attention first, then channel attention with the result as the new teacher (AFA Algorithm 1).
    "afa": Recipe((Leg("ast", 0.5), Leg("act", 0.5))),
    # The ablations of AFA: the other order (Table 8) and no change of teacher (Table 10); both attentions at once
    # (Table 7) is a method, `afa_one_stage`.
    "afa_reversed": Recipe((Leg("act", 0.5), Leg("ast", 0.5))),
    "afa_keep_teacher": Recipe((Leg("ast", 0.5), Leg("act", 0.5, teacher="source"))),
    # The same attention for all images (Table 9): the mean of what the SAMs of a first AST give, which is thrown away;
    # then the channel weights "following DELTA", that is, of the source network with a head for the target task.
    "afa_fixed_attention": Recipe(
        (
            _HEAD,
            Leg("ast", 0.5, start="source", teacher="source"),
            Leg("ast_fixed", 0.5, start="source", teacher="source"),
            Leg("act_fixed", 0.5, measures=0),
        )
    ),
}


@dataclass(frozen=True)
class Stage:
    """One method with its schedule and teacher, all settled.

    Attributes:
      steps: optimizer steps in this stage.
      learning_rate: at its start.
      drop_at: the step at which the rate is `drop` times that, at once or on the way (`schedule`).
      settings: the method's settings (`alpha`, `beta`, `weight_decay`, …) and `convention`.
      taps: paths of the aligned layers.
      start, teacher: as in `Leg`; both `source` for the first stage.
      schedule: `step` or `exponential`.
      first_batch: the place in the run's order of images where the stage begins.
      kept: its target goes into the run's result.
      measures: as in `Leg`.
    """

    method: Method
    steps: int
    learning_rate: float
    drop_at: int
    drop: float
    settings: Mapping[str, Any]
    taps: tuple[str, ...]
    start: Origin = "source"
    teacher: Origin = "source"
    schedule: str = "step"
    first_batch: int = 0
    kept: bool = True
    measures: int = -1

    @property
    def name(self) -> str:
        return self.method.name


SCHEDULES = ("step", "exponential")


def stages(
    recipe: Recipe,
    *,
    steps: int,
    learning_rate: float,
    drop_after: float,
    drop: float,
    settings: Mapping[str, Mapping[str, Any]],
    convention: str,
    taps: Sequence[str],
    schedule: str = "step",
) -> tuple[Stage, ...]:
    """Settles a recipe.

    Recipes of one and of two stages see equally many images, and the same ones, in the stages whose results are kept.
    Each stage's rate falls and the next stage goes on from there (AFA §5.2).

    Args:
      steps: of the whole run, without stages that are thrown away.
      learning_rate: at the start of the first stage.
      drop_after: the share of a stage after which its rate is multiplied by `drop`.
      settings: of each method, by its name.
      schedule: `step`, the rate is multiplied by `drop` once; or `exponential`, it falls steadily and passes the same
        point there. DELTA's 0.93 an epoch (Fig. 3) and its released 0.1^(1/6) are such rates.
    """
    settled: list[Stage] = []
    share, rate = 0.0, learning_rate
    legs = recipe.legs
    if len(legs) == 2 and legs[1].start == "source" and settings[legs[1].method].get("channel_weights"):
        legs = legs[1:]  # what the first would be measured for is there already
    for i, leg in enumerate(legs):
        anew = i == 0 or leg.start == "source"
        share = 0.0 if anew else share
        # A hair more than the product, which may be a hair less than the whole number that is meant.
        begin, end = (math.floor(part * steps + 1e-6) for part in (share, share + leg.share))
        rate = learning_rate if anew or leg.full_rate else rate
        method, length = METHODS[leg.method], max(1, end - begin)
        drop_at = round(drop_after * length)
        settled.append(
            Stage(
                method,
                steps=length,
                learning_rate=rate,
                drop_at=drop_at,
                drop=drop,
                settings=FrozenDict({**settings[leg.method], "convention": convention}),
                taps=tuple(taps) if method.has_taps else (),
                start="source" if anew else "previous",
                teacher=leg.teacher if i else "source",
                schedule=schedule,
                first_batch=begin,
                measures=leg.measures,
                kept=all(later.start == "previous" for later in legs[i + 1 :]),
            )
        )
        rate *= drop ** (length / max(drop_at, 1)) if schedule == "exponential" else drop if drop_at < length else 1.0
        share += leg.share
    return tuple(settled)


def needs(recipe: Recipe) -> frozenset[Need]:
    """What the experiment must offer for any of the recipe's stages."""
    return frozenset(need for name in recipe.methods for need in METHODS[name].needs)


def hand_over(trained: Variables, teacher: Variables, heads: Sequence[str]) -> Variables:
    """The teacher of the next stage: a copy of what the last one trained (AFA Algorithm 1, line 7).

    Parameters and BatchNorm statistics move; the teacher keeps its source heads, the layers at the paths `heads`, as
    the released code does. A copy, because the next step gives the target's memory away.
    """
    copy = jax.tree.map(jnp.copy, dict(trained))
    for head in heads:
        copy["params"] = trees.put(copy["params"], head, trees.get(teacher["params"], head))
    return copy
