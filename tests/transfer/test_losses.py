"""The alignment losses against values worked out by hand and against NumPy's, written from the paper's sums."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from afa_jax.transfer.losses import (
    CONVENTIONS,
    channel_alignment,
    delta_alignment,
    direct_alignment,
    feature_energy,
    spatial_alignment,
)


@pytest.fixture
def arrays():
    random = np.random.default_rng(3)
    target, teacher = random.normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
    positions = random.dirichlet(np.ones(20), 3).astype(np.float32)
    channels = random.dirichlet(np.ones(6), 3).astype(np.float32)
    return target, teacher, positions, channels


def test_spatial_alignment_equals_numpy(arrays):
    target, teacher, attention, _ = arrays
    paper, released = np.zeros(3), np.zeros(3)
    for i in range(3):
        for j in range(4):
            for k in range(5):
                difference = target[i, j, k].astype(np.float64) - teacher[i, j, k]
                paper[i] += np.sum((attention[i, 5 * j + k] * difference) ** 2)
                released[i] += 0.5 * np.sum((attention[i, 5 * j + k] * 20 * difference) ** 2)
    np.testing.assert_allclose(spatial_alignment(target, teacher, attention, "paper"), paper, rtol=1e-5)
    np.testing.assert_allclose(spatial_alignment(target, teacher, attention), released, rtol=1e-5)


def test_channel_alignment_equals_numpy(arrays):
    target, teacher, _, attention = arrays
    paper, released = np.zeros(3), np.zeros(3)
    for i in range(3):
        for c in range(6):
            squares = np.sum((target[i, :, :, c].astype(np.float64) - teacher[i, :, :, c]) ** 2)
            paper[i] += attention[i, c] * squares
            released[i] += 0.5 * 6 * attention[i, c] * squares
    np.testing.assert_allclose(channel_alignment(target, teacher, attention, "paper"), paper, rtol=1e-5)
    np.testing.assert_allclose(channel_alignment(target, teacher, attention), released, rtol=1e-5)


def test_direct_alignment_equals_numpy(arrays):
    target, teacher, _, _ = arrays
    squares = ((target.astype(np.float64) - teacher) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(direct_alignment(target, teacher, "paper"), squares, rtol=1e-5)
    np.testing.assert_allclose(direct_alignment(target, teacher), 0.5 * squares, rtol=1e-5)


def test_delta_alignment_equals_numpy(arrays):
    target, teacher, _, channels = arrays
    weights = channels[0]
    paper, released = np.zeros(3), np.zeros(3)
    for i in range(3):
        for c in range(6):
            a, b = target[i, :, :, c].astype(np.float64), teacher[i, :, :, c].astype(np.float64)
            paper[i] += weights[c] * np.sum((np.maximum(a, 0) - np.maximum(b, 0)) ** 2)
            released[i] += 0.5 * weights[c] * 6 / 20 * np.sum((a - b) ** 2)
    np.testing.assert_allclose(delta_alignment(target, teacher, weights, "paper"), paper, rtol=1e-5)
    np.testing.assert_allclose(delta_alignment(target, teacher, weights), released, rtol=1e-5)
    normalised = delta_alignment(target, teacher, weights, "normalised", 7.0)
    np.testing.assert_allclose(normalised, 20 * released / 7, rtol=1e-5)


def test_the_normalised_losses_have_no_unit(arrays):
    """Both networks' features a hundred times larger: the same numbers; and under uniform attention all four agree."""
    target, teacher, positions, channels = arrays

    def losses(scale, positions, channels):
        energy = feature_energy(scale * teacher).mean()
        pair, how = (scale * target, scale * teacher), ("normalised", energy)
        return [
            spatial_alignment(*pair, positions, *how),
            channel_alignment(*pair, channels, *how),
            delta_alignment(*pair, channels[0], *how),
            direct_alignment(*pair, *how),
        ]

    for small, large in zip(losses(1, positions, channels), losses(100, positions, channels), strict=True):
        np.testing.assert_allclose(small, large, rtol=1e-5)
    uniform = losses(1, np.full((3, 20), 1 / 20), np.full((3, 6), 1 / 6))
    squares = ((target - teacher) ** 2).sum((1, 2, 3)) / (teacher**2).sum((1, 2, 3)).mean() / 2
    for loss in uniform:
        np.testing.assert_allclose(loss, squares, rtol=1e-5)


def test_a_silent_layer_costs_nothing_and_the_energy_is_asked_for(arrays):
    silent = jnp.zeros((1, 2, 2, 3))
    assert direct_alignment(silent, silent, "normalised", jnp.float32(0))[0] == 0
    with pytest.raises(ValueError, match="needs the energy"):
        direct_alignment(silent, silent, "normalised")


def test_by_hand():
    # One example, a map of 1×2 positions and 2 channels; D = [[1, 2], [3, 0]] by position and channel.
    target = jnp.array([[[[1.0, 2.0], [3.0, 0.0]]]])
    teacher = jnp.zeros_like(target)
    # By position ‖D‖² = 5 and 9: (1/4)²·5 + (3/4)²·9 = 0.3125 + 5.0625; released ½·2²· that.
    attention = jnp.array([[0.25, 0.75]])
    assert spatial_alignment(target, teacher, attention, "paper")[0] == pytest.approx(5.375)
    assert spatial_alignment(target, teacher, attention)[0] == pytest.approx(10.75)
    # By channel ‖D‖² = 10 and 4: 1/4·10 + 3/4·4 = 5.5; released ½·2· that.
    assert channel_alignment(target, teacher, attention, "paper")[0] == pytest.approx(5.5)
    assert channel_alignment(target, teacher, attention)[0] == pytest.approx(5.5)
    assert direct_alignment(target, teacher)[0] == pytest.approx(7.0)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_zero_when_the_target_equals_the_teacher_and_only_then(arrays, convention):
    target, teacher, positions, channels = arrays
    how = (convention, jnp.float32(3))
    for loss in (
        lambda t: spatial_alignment(t, teacher, positions, *how),
        lambda t: channel_alignment(t, teacher, channels, *how),
        lambda t: direct_alignment(t, teacher, *how),
        lambda t: delta_alignment(t, teacher, channels[0], *how),
    ):
        assert (loss(teacher) == 0).all()
        assert (loss(target) > 0).all()


def test_uniform_attention_is_direct_alignment_scaled(arrays):
    target, teacher, _, _ = arrays
    direct, flat, even = direct_alignment(target, teacher), np.full((3, 20), 1 / 20), np.full((3, 6), 1 / 6)
    # A = 1/HW: (HW)² cancels, so the released spatial loss *is* the direct one; a = 1/C likewise; DELTA has 1/HW left.
    np.testing.assert_allclose(spatial_alignment(target, teacher, flat), direct, rtol=1e-5)
    np.testing.assert_allclose(channel_alignment(target, teacher, even), direct, rtol=1e-5)
    np.testing.assert_allclose(delta_alignment(target, teacher, even[0]), direct / 20, rtol=1e-5)
    # As printed: 1/(HW)² and 1/C of the direct one.
    direct = direct_alignment(target, teacher, "paper")
    np.testing.assert_allclose(spatial_alignment(target, teacher, flat, "paper"), direct / 400, rtol=1e-5)
    np.testing.assert_allclose(channel_alignment(target, teacher, even, "paper"), direct / 6, rtol=1e-5)


def test_each_example_counts_for_itself(arrays):
    target, teacher, positions, channels = arrays
    order = [2, 0, 1]
    for loss, attention in ((spatial_alignment, positions), (channel_alignment, channels)):
        permuted = loss(target[order], teacher[order], attention[order])
        np.testing.assert_allclose(permuted, loss(target, teacher, attention)[np.array(order)], rtol=1e-6)


def test_bfloat16_features_are_compared_in_float32():
    target, teacher = jnp.full((1, 2, 2, 1), 3.0, jnp.bfloat16), jnp.full((1, 2, 2, 1), 2.0, jnp.bfloat16)
    loss = direct_alignment(target, teacher)
    assert loss.dtype == jnp.float32 and loss[0] == 2.0


def test_unknown_convention_is_refused(arrays):
    with pytest.raises(ValueError, match="convention is 'papr'"):
        direct_alignment(arrays[0], arrays[1], "papr")


def test_gradients_equal_finite_differences(arrays):
    target, teacher, positions, channels = arrays
    for loss, attention in ((spatial_alignment, positions), (channel_alignment, channels)):
        check_grads(
            lambda t, a, loss=loss: loss(t, jnp.asarray(teacher), a).sum(),
            (jnp.asarray(target), jnp.asarray(attention)),
            order=1,
            modes=("rev",),
            rtol=2e-2,
        )
