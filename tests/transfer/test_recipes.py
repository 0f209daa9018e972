"""How a recipe becomes stages, and what is in the teacher after a hand-over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afa_jax.transfer.methods import METHODS
from afa_jax.transfer.recipes import RECIPES, Recipe, hand_over, stages
from tests import tiny


def settle(name, steps=9000, **changes):
    values = {
        "steps": steps,
        "learning_rate": 0.01,
        "drop_after": 2 / 3,
        "drop": 0.1,
        "settings": {name: dict(method.settings) for name, method in METHODS.items()},
        "convention": "released",
        "taps": ("a", "b"),
        **changes,
    }
    return stages(RECIPES[name], **values)


def test_afa_has_the_papers_schedule():
    first, second = settle("afa")
    assert [stage.name for stage in (first, second)] == ["ast", "act"]
    assert (first.steps, first.drop_at, first.learning_rate) == (4500, 3000, 0.01)
    assert (second.steps, second.drop_at) == (4500, 3000)
    assert second.learning_rate == pytest.approx(0.001)  # stage II starts at stage I's last rate
    assert (first.teacher, second.teacher) == ("source", "previous")


def test_single_methods_take_all_steps():
    for name in METHODS:
        (stage,) = settle(name)
        assert stage.taps == (("a", "b") if METHODS[name].needs else ())
        assert (stage.name, stage.steps, stage.drop_at, stage.teacher) == (name, 9000, 6000, "source")


def test_a_rate_that_never_dropped_is_carried_over():
    first, second = settle("afa", drop_after=1.0)
    assert first.learning_rate == second.learning_rate == 0.01


def test_no_step_is_lost_when_they_do_not_divide():
    assert [stage.steps for stage in settle("afa", steps=7)] == [3, 4]


def test_settings_and_convention_reach_the_stage():
    (stage,) = settle("ast", convention="paper")
    assert stage.settings == {"alpha": 0.1, "beta": 0.01, "weight_decay": 0.0, "convention": "paper"}
    assert hash(stage) is not None


def test_recipes_name_methods_that_exist_and_stages_that_differ():
    for recipe in RECIPES.values():
        assert set(recipe.methods) <= set(METHODS)
        assert len(set(recipe.methods)) == len(recipe.methods)
    assert RECIPES["scratch"] == Recipe(("l2",), start="random")


def test_hand_over_copies_params_and_statistics_but_the_head():
    trained, teacher = tiny.variables(seed=1), tiny.variables(tiny.SOURCE_CLASSES, seed=2)
    handed = hand_over(trained, teacher, ["fc"])
    for layer in ("conv1", "bn1", "conv2"):
        jax.tree.map(np.testing.assert_array_equal, handed["params"][layer], trained["params"][layer])
    jax.tree.map(np.testing.assert_array_equal, handed["batch_stats"], trained["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, handed["params"]["fc"], teacher["params"]["fc"])


def test_hand_over_owns_its_memory():
    trained, teacher = tiny.variables(seed=1), tiny.variables(tiny.SOURCE_CLASSES, seed=2)
    expected = jax.tree.map(np.array, hand_over(trained, teacher, ["fc"]))
    handed = hand_over(trained, teacher, ["fc"])
    jax.jit(lambda v: jax.tree.map(jnp.zeros_like, v), donate_argnums=0)(trained)  # the target's memory is gone
    jax.tree.map(np.testing.assert_array_equal, handed, expected)
