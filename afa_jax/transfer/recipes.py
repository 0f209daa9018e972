"""Recipes: which methods a run goes through, and from whom each stage's teacher comes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from afa_jax import trees
from afa_jax.transfer.methods import METHODS, Method
from afa_jax.types import Variables

Teacher = Literal["source", "previous"]


@dataclass(frozen=True)
class Recipe:
    """A named sequence of methods, one stage each, in equal shares of the run's steps.

    Attributes:
      methods: names in `METHODS`.
      teacher: of the stages after the first: `previous`, what the stage before trained (AFA Algorithm 1, line 7), or
        `source`. The first stage's teacher is always the source network.
      start: the target starts from the `source` network's weights (Algorithm 1, line 2) or at `random`.
    """

    methods: tuple[str, ...]
    teacher: Teacher = "previous"
    start: Literal["source", "random"] = "source"


RECIPES: dict[str, Recipe] = {
    # What the small labelled set alone gives, as the yardstick of every transfer.
    "scratch": Recipe(("l2",), start="random"),
    **{name: Recipe((name,)) for name in METHODS},
    # Spatial attention first, then channel attention with the result as the new teacher (AFA Algorithm 1).
    "afa": Recipe(("ast", "act")),
}


@dataclass(frozen=True)
class Stage:
    """One method with its schedule and teacher, all settled.

    Attributes:
      steps: optimizer steps in this stage.
      learning_rate: at its start.
      drop_at: the step from which the rate is multiplied by `drop`.
      settings: the method's settings (`alpha`, `beta`, `weight_decay`, …) and `convention`.
      taps: paths of the aligned layers.
    """

    method: Method
    steps: int
    learning_rate: float
    drop_at: int
    drop: float
    settings: Mapping[str, Any]
    taps: tuple[str, ...]
    teacher: Teacher = "source"

    @property
    def name(self) -> str:
        return self.method.name


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
) -> tuple[Stage, ...]:
    """Settles a recipe.

    The steps are shared out evenly, so that recipes of one and of two stages see equally many images. Each stage's
    rate drops once and the next stage starts from there (AFA §5.2).

    Args:
      steps: of the whole run.
      learning_rate: at the start of the first stage.
      drop_after: the share of a stage after which its rate is multiplied by `drop`.
      settings: of each method, by its name.
    """
    settled = []
    count = len(recipe.methods)
    for i, name in enumerate(recipe.methods):
        length = steps * (i + 1) // count - steps * i // count
        drop_at = round(drop_after * length)
        settled.append(
            Stage(
                METHODS[name],
                steps=length,
                learning_rate=learning_rate,
                drop_at=drop_at,
                drop=drop,
                settings=FrozenDict({**settings[name], "convention": convention}),
                taps=tuple(taps) if METHODS[name].needs else (),
                teacher=recipe.teacher if i else "source",
            )
        )
        learning_rate *= drop if drop_at < length else 1.0
    return tuple(settled)


def hand_over(trained: Variables, teacher: Variables, heads: Sequence[str]) -> Variables:
    """The teacher of the next stage: a copy of what the last one trained (AFA Algorithm 1, line 7).

    Parameters and BatchNorm statistics move; the teacher keeps its source heads, the layers at the paths `heads`, as
    the released code does. A copy, because the next step gives the target's memory away.
    """
    copy = jax.tree.map(jnp.copy, dict(trained))
    for head in heads:
        copy["params"] = trees.put(copy["params"], head, trees.get(teacher["params"], head))
    return copy
