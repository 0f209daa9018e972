"""How a recipe becomes stages, and what is in the teacher after a hand-over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afa_jax.training.optimizer import schedule
from afa_jax.transfer.methods import METHODS
from afa_jax.transfer.recipes import RECIPES, Leg, Recipe, hand_over, stages
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
    for name, method in METHODS.items():
        if method.first is None and name != "lwf":
            (stage,) = settle(name)
            assert stage.taps == (("a", "b") if method.has_taps else ())
            assert (stage.name, stage.steps, stage.drop_at, stage.teacher) == (name, 9000, 6000, "source")


# (method, steps, rate, first batch, start, teacher, kept) of each stage.
STAGES = {
    "delta": [
        ("l2_fe", 1800, 0.01, 0, "source", "source", False),
        ("delta", 9000, 0.01, 0, "source", "source", True),
    ],
    "l2_sp_att": [
        ("l2_fe", 1800, 0.01, 0, "source", "source", False),
        ("l2_sp_att", 9000, 0.01, 0, "source", "source", True),
    ],
    "ast_fixed": [
        ("ast", 9000, 0.01, 0, "source", "source", False),
        ("ast_fixed", 9000, 0.01, 0, "source", "source", True),
    ],
    "lwf": [
        ("l2_fe", 1800, 0.01, 0, "source", "source", True),
        ("lwf", 7200, 0.01, 1800, "previous", "source", True),
    ],
    "afa": [
        ("ast", 4500, 0.01, 0, "source", "source", True),
        ("act", 4500, 0.001, 4500, "previous", "previous", True),
    ],
    "afa_reversed": [
        ("act", 4500, 0.01, 0, "source", "source", True),
        ("ast", 4500, 0.001, 4500, "previous", "previous", True),
    ],
    "afa_keep_teacher": [
        ("ast", 4500, 0.01, 0, "source", "source", True),
        ("act", 4500, 0.001, 4500, "previous", "source", True),
    ],
    "afa_one_stage": [("afa_one_stage", 9000, 0.01, 0, "source", "source", True)],
    "afa_fixed_attention": [
        ("l2_fe", 1800, 0.01, 0, "source", "source", False),
        ("ast", 4500, 0.01, 0, "source", "source", False),
        ("ast_fixed", 4500, 0.01, 0, "source", "source", True),
        ("act_fixed", 4500, 0.001, 4500, "previous", "previous", True),
    ],
}


@pytest.mark.parametrize("name", STAGES)
def test_stages(name):
    found = [
        (s.name, s.steps, pytest.approx(s.learning_rate), s.first_batch, s.start, s.teacher, s.kept)
        for s in settle(name)
    ]
    assert found == STAGES[name]


def test_fixed_attention_measures_its_channels_on_the_source_with_a_head():
    """And its positions on the SAMs of the stage before."""
    assert [stage.measures for stage in settle("afa_fixed_attention")] == [-1, -1, -1, 0]


def test_a_file_of_weights_saves_the_stage_that_they_are_measured_on():
    settings = {name: dict(method.settings) for name, method in METHODS.items()}
    settings["delta"]["channel_weights"] = "weights.json"
    assert [stage.name for stage in settle("delta", settings=settings)] == ["delta"]
    assert [stage.name for stage in settle("l2_sp_att", settings=settings)] == ["l2_fe", "l2_sp_att"]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("steps", [5, 7, 200, 9000, 12345])
def test_what_is_kept_of_a_recipe_is_as_long_as_the_run_and_sees_the_same_images(name, steps):
    kept = [stage for stage in settle(name, steps) if stage.kept]
    assert sum(stage.steps for stage in kept) == steps
    assert [stage.first_batch for stage in kept] == [sum(s.steps for s in kept[:i]) for i in range(len(kept))]


def test_the_exponential_rate_passes_the_same_point_and_the_next_stage_goes_on_from_its_end():
    first, second = settle("afa", schedule="exponential")
    rate = schedule(first)
    assert [float(rate(k)) for k in (0, 1500, 3000)] == pytest.approx([0.01, 0.01 * 0.1**0.5, 0.001])
    assert second.learning_rate == pytest.approx(float(rate(4500))) == pytest.approx(0.01 * 0.1**1.5)
    # DELTA's 0.93 an epoch (Fig. 3): 32 epochs are 6,000 steps on Stanford Dogs.
    (stage,) = settle("dfa", schedule="exponential")
    assert float(schedule(stage)(6000 / 32)) == pytest.approx(0.93 * 0.01, rel=1e-3)


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
    assert RECIPES["scratch"] == Recipe((Leg("l2"),), start="random")
    assert set(METHODS) <= set(RECIPES)


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
