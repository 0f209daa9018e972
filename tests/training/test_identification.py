"""ArcFace against float64 and central differences, at the extremes too."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from afa_jax.models.cosine import cosine_logits, unit
from afa_jax.training.identification import arcface_logits

SCALE, MARGIN = 64.0, 0.5
arcface = jax.jit(arcface_logits, static_argnames=("scale", "margin"))


def reference(embedding, kernel, labels, scale=SCALE, margin=MARGIN):
    """The paper's words in float64: angles, the margin added to one of them, cosines."""
    u = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    v = (kernel / np.linalg.norm(kernel, axis=0)).T
    between = np.linalg.norm(u[:, None] - v, axis=-1), np.linalg.norm(u[:, None] + v, axis=-1)
    theta = 2 * np.arctan2(*between)
    logits, rows = np.cos(theta), np.arange(len(labels))
    own = theta[rows, labels]
    logits[rows, labels] = np.where(own + margin < np.pi, np.cos(own + margin), np.cos(own) - margin * np.sin(margin))
    return scale * logits


def loss(logits, labels, library=np):
    """Mean softmax cross-entropy; scaled down so that one identity does not drown the others."""
    logits = logits / 16
    normaliser = library.log(library.exp(logits).sum(-1))
    return (normaliser - logits[library.arange(len(labels)), labels]).mean()


def differences(function, x, step=1e-6):
    """Central differences of a float64 function."""
    slopes = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[i] += sign * step
            ends.append(function(moved))
        slopes[i] = (ends[0] - ends[1]) / (2 * step)
    return slopes


@jax.jit
@partial(jax.grad, argnums=(0, 1))
def slopes(embedding, kernel, labels):
    return loss(arcface_logits(embedding, kernel, labels), labels, jnp)


def compare(embedding, kernel, labels, rtol=1e-4, step=1e-6):
    embedding, kernel = (np.asarray(x, np.float32).astype(np.float64) for x in (embedding, kernel))
    ours = arcface(jnp.float32(embedding), jnp.float32(kernel), jnp.asarray(labels))
    np.testing.assert_allclose(ours, reference(embedding, kernel, labels), atol=SCALE * 1e-6)

    found = slopes(jnp.float32(embedding), jnp.float32(kernel), jnp.asarray(labels))
    expected = (
        differences(lambda x: loss(reference(x, kernel, labels), labels), embedding, step),
        differences(lambda x: loss(reference(embedding, x, labels), labels), kernel, step),
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * np.abs(other).max())


def test_value_and_gradient_are_the_papers():
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 7)
    compare(random.normal(size=(7, 6)), random.normal(size=(6, 5)), labels)


def at_angles(angles, size=4):
    """An embedding for each angle, and a kernel whose first column is that far from all of them; others are far."""
    kernel = np.zeros((size, 2))
    kernel[0, 0], kernel[2, 1] = 1, 1
    return np.stack([[np.cos(a), np.sin(a), *np.zeros(size - 2)] for a in angles]), kernel


@pytest.mark.parametrize("angle", [1e-1, 1e-2, 1e-3, 3e-4])
@pytest.mark.parametrize("end", ["near 0", "near π"])
def test_near_the_extremes(angle, end):
    embedding, kernel = at_angles([angle if end == "near 0" else np.pi - angle])
    # The embedding itself has 24 bits, so its angle has as much fewer as it is small.
    compare(embedding, kernel, [0], rtol=max(1e-4, 3e-7 / angle), step=angle * 1e-4)


@pytest.mark.parametrize("end", [1.0, -1.0])
def test_at_the_extremes_themselves(end):
    """cos θ = ±1: the value is cos m, or −1 − m·sin m; the kink's gradient is the mean of both sides'."""
    embedding, kernel = np.array([[end * 3, 0, 0, 0]]), at_angles([0])[1]
    logits = arcface(jnp.float32(embedding), jnp.float32(kernel), jnp.array([0]))
    expected = np.cos(MARGIN) if end > 0 else -1 - MARGIN * np.sin(MARGIN)
    np.testing.assert_allclose(logits, [[SCALE * expected, 0]], rtol=1e-6)
    compare(embedding, kernel, [0])


@pytest.mark.parametrize("offset", [-1e-2, -1e-4, 1e-4, 1e-2])
def test_on_both_sides_of_where_the_cosine_would_rise_again(offset):
    """θ + m just below and above π: there the value steps from −1 down to −cos m − m·sin m."""
    embedding, kernel = at_angles([np.pi - MARGIN + offset])
    compare(embedding, kernel, [0])
    value = arcface(jnp.float32(embedding), jnp.float32(kernel), jnp.array([0]))[0, 0]
    expected = -1 if offset < 0 else -np.cos(MARGIN) - MARGIN * np.sin(MARGIN)
    assert float(value) / SCALE == pytest.approx(expected, abs=1.01 * abs(offset))


def test_the_logit_of_the_label_falls_with_the_angle():
    angles = np.linspace(0, np.pi, 2001)
    embedding, kernel = at_angles(angles)
    values = arcface(jnp.float32(embedding), jnp.float32(kernel), jnp.zeros(len(angles), int))[:, 0]
    assert (np.diff(values) <= 0).all()


def test_gradients_are_finite_and_bounded_everywhere():
    """|d logit / d embedding| is at most s for an embedding of length 1: the angle's own slope is 1."""
    angles = np.concatenate([[0.0], np.geomspace(1e-12, 1, 60), np.pi - np.geomspace(1e-12, 1, 60), [np.pi]])
    embeddings, kernel = at_angles(angles)

    def own(embedding, kernel):
        return arcface_logits(embedding[None], kernel, jnp.array([0]))[0, 0]

    for found in jax.jit(jax.vmap(jax.grad(own, (0, 1)), (0, None)))(jnp.float32(embeddings), jnp.float32(kernel)):
        lengths = np.sqrt((np.asarray(found) ** 2).reshape(len(angles), -1).sum(1))
        assert np.isfinite(lengths).all() and lengths.max() <= SCALE * (1 + 1e-5)


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 7.0, 1e30])
def test_lengths_do_not_matter(factor):
    random = np.random.default_rng(1)
    embedding, kernel = np.float32(random.normal(size=(3, 8))), np.float32(random.normal(size=(8, 4)))
    labels = jnp.array([0, 3, 3])
    plain = arcface(embedding, kernel, labels)
    longer = np.float32(factor) * embedding
    np.testing.assert_allclose(arcface(longer, kernel, labels), plain, rtol=1e-5, atol=1e-4)
    columns = np.float32([1, factor, 1, factor])
    np.testing.assert_allclose(arcface(embedding, kernel * columns, labels), plain, rtol=1e-5, atol=1e-4)
    slope = jax.jit(jax.grad(lambda x: arcface(x, kernel, labels).sum()))
    ratio = slope(jnp.asarray(longer)) * np.float32(factor)
    np.testing.assert_allclose(ratio, slope(jnp.asarray(embedding)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("which", ["embedding", "kernel", "both"])
def test_zero_vectors(which):
    """They are at right angles to everything, and training can move them."""
    embedding = jnp.zeros((1, 3)) if which != "kernel" else jnp.array([[1.0, 2, 3]])
    kernel = jnp.zeros((3, 2)) if which != "embedding" else jnp.array([[1.0, 2], [3, 4], [5, 0]])
    logits, back = jax.vjp(lambda *x: arcface(*x, jnp.array([1])), embedding, kernel)
    np.testing.assert_allclose(logits, [[0, SCALE * np.cos(np.pi / 2 + MARGIN)]], atol=1e-5)
    for slope in back(jnp.ones((1, 2))):
        assert np.isfinite(slope).all()
    if which == "embedding":
        assert np.abs(back(jnp.ones((1, 2)))[0]).max() > 0


def test_no_margin_is_the_plain_cosine():
    random = np.random.default_rng(2)
    embedding, kernel = random.normal(size=(4, 8)), random.normal(size=(8, 3))
    plain = cosine_logits(jnp.float32(embedding), jnp.float32(kernel), scale=2.0)
    cosines = embedding @ kernel / np.linalg.norm(embedding, axis=1, keepdims=True) / np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(plain, 2 * cosines, atol=1e-6)
    labels = jnp.array([0, 1, 2, 0])
    without = arcface(jnp.float32(embedding), jnp.float32(kernel), labels, scale=2.0, margin=0.0)
    np.testing.assert_allclose(without, plain, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_numbers_are_computed_in_float32(dtype):
    random = np.random.default_rng(3)
    embedding, kernel = (jnp.asarray(random.normal(size=shape), dtype) for shape in ((4, 8), (8, 3)))
    labels = jnp.array([0, 1, 2, 0])
    logits = arcface(embedding, kernel, labels)
    assert logits.dtype == jnp.float32
    exact = reference(*(np.asarray(x, np.float64) for x in (embedding, kernel)), np.asarray(labels))
    np.testing.assert_allclose(logits, exact, atol=1e-4)
    assert jax.grad(lambda x: arcface(x, kernel, labels).sum())(embedding).dtype == dtype


def test_it_trains():
    """Three identities in a plane turn until each embedding is its own column's."""
    kernel, labels = jnp.eye(3), jnp.array([0, 1, 2])
    embedding = jnp.array([[0.5, 1, 0.2], [0.1, 0.3, 1], [1.0, 0.2, 0.4]])  # each is nearest to another's

    def cost(embedding):
        return optax.softmax_cross_entropy_with_integer_labels(arcface_logits(embedding, kernel, labels), labels).mean()

    step = jax.jit(lambda x: x - 0.01 * jax.grad(cost)(x))
    for _ in range(300):
        embedding = step(embedding)
    cosines = np.diag(unit(embedding))
    assert (cosines > np.cos(0.6)).all()
