"""Logits for telling identities apart: additive angular margins (ArcFace, Deng et al. 2019) on any network's head.

A network for faces is an ordinary one: a plain classification layer takes in the embedding. ArcFace looks only at the
angle between the embedding and each column of that layer's kernel; the bias has no part in it.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from afa_jax.models.cosine import cosines, unit

LOSSES = ("softmax", "arcface")


@dataclass(frozen=True)
class Loss:
    """The cross-entropy by which classes are told apart.

    ArcFace is told by the angles between embedding and class alone, and so is everything that is judged by them: top-1,
    DELTA's channel weights, the outputs that LwF keeps.
    """

    name: str = "softmax"
    """`softmax` of the classification layer, or `arcface`: of s·cos θ, with a margin at the label."""
    scale: float = 64.0
    """ArcFace's s."""
    margin: float = 0.5
    """ArcFace's m, in radians."""

    @property
    def by_angle(self) -> bool:
        return self.name == "arcface"


SOFTMAX = Loss()


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
    every, own = cosines(embedding, kernel), kernel[:, labels].T
    cosine = jnp.take_along_axis(every, labels[:, None], axis=1)
    has_angle = (embedding != 0).any(-1, keepdims=True) & (own != 0).any(-1, keepdims=True)
    sine = jnp.where(has_angle, 0.5 * _length(embedding - own) * _length(embedding + own), 1)
    moved = cosine * math.cos(margin) - sine * math.sin(margin)
    moved = jnp.where(cosine > math.cos(math.pi - margin), moved, cosine - margin * math.sin(margin))
    is_label = jnp.arange(every.shape[1]) == labels[:, None]
    return scale * jnp.where(is_label, moved, every)


def _length(vectors: Array) -> Array:
    """‖x‖ `[B, 1]` of `[B, D]`, whose gradient at 0 is 0."""
    square = (vectors * vectors).sum(-1, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
