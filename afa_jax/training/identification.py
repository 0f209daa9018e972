"""Logits for telling identities apart: additive angular margins (ArcFace, Deng et al. 2019) on any network's head.

A network for faces is an ordinary one: a plain classification layer takes in the embedding. ArcFace looks only at the
angle between the embedding and each column of that layer's kernel; the bias has no part in it.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array


def unit(vectors: Array, axis: int = -1) -> Array:
    """x / ‖x‖ in float32, for vectors of any length that float32 has.

    A zero vector stays zero, and its gradient is that of a vector of length 1, so that training can move it.
    """
    vectors = vectors.astype(jnp.float32)
    # The result does not depend on the scale, so its gradient does not either; squares of what is scaled stay finite.
    largest = jax.lax.stop_gradient(jnp.abs(vectors).max(axis, keepdims=True))
    scaled = vectors / jnp.where(largest > 0, largest, 1)
    square = (scaled * scaled).sum(axis, keepdims=True)
    return scaled / jnp.sqrt(jnp.where(largest > 0, square, 1))


def cosine_logits(embedding: Array, kernel: Array, scale: float = 64.0) -> Array:
    """s·cos θ_j: what identities are judged by when no margin is added.

    Args:
      embedding: `[B, D]`, what the classification layer takes in.
      kernel: `[D, K]`, a column an identity.
      scale: s.

    Returns:
      float32 `[B, K]`.
    """
    return scale * _cosines(unit(embedding), unit(kernel, axis=0))


def arcface_logits(embedding: Array, kernel: Array, labels: Array, scale: float = 64.0, margin: float = 0.5) -> Array:
    """s·cos(θ_y + m) at the label y, s·cos θ_j elsewhere (Deng et al. 2019, eq. 3); for softmax cross-entropy.

    Where θ_y + m > π the cosine would rise again. There the released code (`easy_margin` false) takes
    cos θ_y − m·sin m, which falls on; at θ_y = π − m itself it steps down, from −1 to −cos m − m·sin m. So do we.

    cos(θ + m) = cos θ·cos m − sin θ·sin m, with sin θ = ½·‖u − v‖·‖u + v‖ of the unit vectors u and v. Other than
    √(1 − cos²θ), this loses no digits near θ = 0 and π, and its gradient stays finite there. At 0 and π themselves the
    loss has a kink; the gradient is then the mean of all directions', as of central differences.

    Args:
      embedding: `[B, D]` of any length each and any precision; a zero vector has θ = 90° to all.
      kernel: `[D, K]`, a column an identity, of any length each.
      labels: int `[B]` in [0, K).
      scale: s.
      margin: m in radians, in [0, π).

    Returns:
      float32 `[B, K]`.
    """
    embedding, kernel = unit(embedding), unit(kernel, axis=0)
    cosines, own = _cosines(embedding, kernel), kernel[:, labels].T
    cosine = jnp.take_along_axis(cosines, labels[:, None], axis=1)
    has_angle = (embedding != 0).any(-1, keepdims=True) & (own != 0).any(-1, keepdims=True)
    sine = jnp.where(has_angle, 0.5 * _length(embedding - own) * _length(embedding + own), 1)
    moved = cosine * math.cos(margin) - sine * math.sin(margin)
    moved = jnp.where(cosine > math.cos(math.pi - margin), moved, cosine - margin * math.sin(margin))
    is_label = jnp.arange(cosines.shape[1]) == labels[:, None]
    return scale * jnp.where(is_label, moved, cosines)


def _cosines(embedding: Array, kernel: Array) -> Array:
    # Elsewhere than on CPU the default drops digits, of which the scale of 64 would make whole logits.
    return jnp.matmul(embedding, kernel, precision=jax.lax.Precision.HIGHEST)


def _length(vectors: Array) -> Array:
    """‖x‖ `[B, 1]` of `[B, D]`, whose gradient at 0 is 0."""
    square = (vectors * vectors).sum(-1, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
