"""Attention over photos: against the checkpoints and NumPy; what is laid over the photos."""

from dataclasses import replace

import numpy as np
import pytest

from afa_jax.analysis import attention as attentions
from afa_jax.analysis.attention import attention, describe, overlay, predictions
from afa_jax.analysis.photos import photos
from afa_jax.transfer.method import no_parameters
from afa_jax.transfer.methods import METHODS
from tests.analysis import by_hand

TAPS = tuple(f"layer{i}.0.conv2" for i in range(1, 5))


@pytest.fixture(scope="module")
def seen(trained):
    return photos(trained, (), 3)


@pytest.fixture(scope="module")
def found(trained, seen):
    return {(a.stage, a.tap): a for stage in trained.stages for a in attention(stage, trained.preprocess, seen)}


def test_every_stage_has_its_own_at_every_tap(found):
    assert list(found) == [(stage, tap) for stage in ("ast", "act") for tap in TAPS]
    assert {(a.stage, a.kind) for a in found.values()} == {("ast", "spatial"), ("act", "channel")}


def test_that_of_stage_two_looks_at_what_stage_one_trained(found, finished, seen):
    """By hand: stage I's checkpoint is the teacher, and the CAMs are those of stage II's."""
    teacher, _ = by_hand.checkpoint(finished, "1-ast", 4)
    _, modules = by_hand.checkpoint(finished, "2-act", 4)
    features, _ = by_hand.features(teacher, seen.images, TAPS)
    for tap in TAPS:
        expected = by_hand.channel(modules[tap], features[tap])
        np.testing.assert_allclose(found["act", tap].weights, expected, rtol=1e-3, atol=1e-6)
        shown = np.einsum("pc,phwc->phw", expected, np.abs(features[tap]))
        np.testing.assert_allclose(found["act", tap].shown, shown, rtol=1e-3, atol=1e-5)


def test_that_of_stage_one_looks_at_the_source(found, trained, finished, seen):
    _, modules = by_hand.checkpoint(finished, "1-ast", 4)
    features, _ = by_hand.features(trained.stages[0].teacher.variables, seen.images, TAPS)
    for tap in TAPS:
        expected = by_hand.spatial(modules[tap], features[tap]).reshape(features[tap].shape[:3])
        np.testing.assert_allclose(found["ast", tap].weights, expected, rtol=1e-3, atol=1e-6)


def test_the_weights_of_a_photo_sum_to_one(found):
    for one in found.values():
        np.testing.assert_allclose(one.weights.reshape(3, -1).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(("constant", "kind"), [("positions", "spatial"), ("channels", "channel")])
def test_fixed_attention_is_the_same_for_all_photos(trained, seen, constant, kind):
    values = np.random.default_rng(0).random(16 if kind == "spatial" else 32).astype(np.float32)
    stage = trained.stages[0]
    one = replace(
        stage,
        stage=replace(stage.stage, method=METHODS["delta"], taps=("layer2.0.conv2",)),
        attention={},
        constants={constant: {"layer2.0.conv2": values}, "energy": {"layer2.0.conv2": 1.0}},
    )
    (made,) = attention(one, trained.preprocess, seen)
    assert made.kind == kind
    np.testing.assert_array_equal(made.weights.reshape(3, -1), np.stack([values] * 3))


def test_a_stage_without_attention_or_teacher_has_none(trained, seen):
    stage = trained.stages[0]
    plain = replace(stage, stage=replace(stage.stage, method=METHODS["l2"]), attention={})
    assert not list(attention(plain, trained.preprocess, seen))
    assert not list(attention(replace(stage, teacher=None), trained.preprocess, seen))


def test_no_method_that_learns_attention_is_forgotten():
    with_own = {name for name, method in METHODS.items() if method.init is not no_parameters and method.has_taps}
    assert set(attentions.LEARNT) == with_own


def test_an_overlay_is_of_the_photos_size_and_clear_where_attention_is_lowest():
    shown = np.zeros((2, 2), np.float32)
    shown[0, 1], shown[1, 0] = 1.0, 0.25
    made = np.asarray(overlay(shown, 8))
    assert made.shape == (8, 8, 4)
    strength = np.zeros((8, 8))  # bilinear between the middles of the four squares, flat outside of them
    for y in range(8):
        for x in range(8):
            v, u = np.clip((y - 1.5) / 4, 0, 1), np.clip((x - 1.5) / 4, 0, 1)
            strength[y, x] = (1 - v) * u + 0.25 * v * (1 - u)
    strength = (strength - strength.min()) / (strength.max() - strength.min())
    np.testing.assert_allclose(made[..., 3], 255 * 0.85 * strength, atol=1)
    assert tuple(made[0, 7, :3]) == (253, 231, 37)  # the bright end of viridis
    assert np.asarray(overlay(np.full((3, 3), 0.1, np.float32), 6))[..., 3].max() == 0  # nothing stands out


def test_peak_and_the_strongest_channels(found):
    one = replace(found["act", TAPS[0]], weights=np.array([[0.1] * 9 + [0.05, 0.03, 0.02]]))
    assert describe(one, 0)["peak"] == pytest.approx(1.2)
    assert describe(one, 0)["top"] == [[c, 0.1] for c in range(9)] + [[9, 0.05]]
    flat = replace(found["ast", TAPS[0]], weights=np.full((1, 4, 4), 1 / 16))
    assert describe(flat, 0) == {"peak": pytest.approx(1)}


def test_what_the_network_says_of_the_photos(trained, seen):
    told = predictions(trained, replace(seen, labels=np.array([4, -1, 0])))
    likely = by_hand.softmax(by_hand.features(trained.target.variables, seen.images, ())[1].astype(float))
    assert [one["class"] for one in told] == ["4", None, "0"]
    assert [one["predicted"] for one in told] == [str(c) for c in likely.argmax(1)]
    np.testing.assert_allclose([one["probability"] for one in told], likely.max(1), atol=1e-5)
