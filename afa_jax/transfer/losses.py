"""The alignment losses, per example and for one tapped layer.

With D = F_target − F_teacher, both `[B, H, W, C]`, each function gives one number an example, `[B]`, in float32. A
method sums over its tapped layers. Nothing here reduces over the batch: the released DFA and DELTA *sum* over it where
AST and ACT take its mean, and `methods` says so.

Three conventions set the scale:

- `released`, the default: the authors' code, to which the published alphas belong;
- `paper`: the printed equation;
- `normalised`, ours: the released form divided by the teacher's mean squared feature map E‖F‖² at this layer, the mean
  over the training images. Alpha then has no unit, and means the same at each tap and in each network. Where the
  attention is uniform, all four losses are ½·‖D‖²/E‖F‖².
"""

from typing import Literal, get_args

import jax.numpy as jnp
from jax import Array

Convention = Literal["released", "paper", "normalised"]
CONVENTIONS: tuple[str, ...] = get_args(Convention)


def spatial_alignment(
    target: Array,
    teacher: Array,
    attention: Array,
    convention: Convention = "released",
    energy: Array | None = None,
) -> Array:
    """Ω_S, the alignment weighted by position (AFA eq. 6).

    paper: Σ_jk ‖A_jk·D_jk‖²; released: ½·Σ_jk ‖A_jk·(H·W)·D_jk‖².

    Args:
      target, teacher: features `[B, H, W, C]`.
      attention: A, `[B, H·W]` (or `[1, H·W]`), each row summing to 1.
      convention: which scale.
      energy: E‖F‖², a scalar, for `normalised`.
    """
    _, height, width, _ = target.shape
    squares = _squared_difference(target, teacher).sum(-1)  # ‖D_jk‖², [B, HW]
    paper = (attention**2 * squares).sum(-1)
    return _scaled(convention, paper, 0.5 * (height * width) ** 2 * paper, energy)


def channel_alignment(
    target: Array,
    teacher: Array,
    attention: Array,
    convention: Convention = "released",
    energy: Array | None = None,
) -> Array:
    """Ω_C, the alignment weighted by channel (AFA eq. 8).

    paper: Σ_c a_c·‖D_c‖²; released: ½·Σ_c C·a_c·‖D_c‖².

    Args:
      target, teacher: features `[B, H, W, C]`.
      attention: a, `[B, C]` (or `[1, C]`), each row summing to 1.
      convention: which scale.
      energy: E‖F‖², a scalar, for `normalised`.
    """
    squares = _squared_difference(target, teacher).sum(1)  # ‖D_c‖², [B, C]
    paper = (attention * squares).sum(-1)
    return _scaled(convention, paper, 0.5 * target.shape[-1] * paper, energy)


def direct_alignment(
    target: Array, teacher: Array, convention: Convention = "released", energy: Array | None = None
) -> Array:
    """Alignment without attention, DFA (AFA eq. 3).

    paper: ‖D‖²; released: ½·‖D‖².

    Args:
      target, teacher: features `[B, H, W, C]`.
      convention: which scale.
      energy: E‖F‖², a scalar, for `normalised`.
    """
    paper = _squared_difference(target, teacher).sum((1, 2))
    return _scaled(convention, paper, 0.5 * paper, energy)


def delta_alignment(
    target: Array,
    teacher: Array,
    channel_weights: Array,
    convention: Convention = "released",
    energy: Array | None = None,
) -> Array:
    """DELTA's alignment under fixed channel weights (DELTA eq. 8).

    paper: Σ_c w_c·‖ReLU(F_target)_c − ReLU(F_teacher)_c‖²; released: ½·Σ_c w_c·C/(H·W)·‖D_c‖², without ReLU;
    normalised: ½·Σ_c w_c·C·‖D_c‖² / E‖F‖².

    Args:
      target, teacher: features `[B, H, W, C]`.
      channel_weights: w, `[C]`, summing to 1; see `channel_weights`.
      convention: which scale.
      energy: E‖F‖², a scalar, for `normalised`.
    """
    if convention == "paper":
        return channel_alignment(jnp.maximum(target, 0), jnp.maximum(teacher, 0), channel_weights[None], "paper")
    area = target.shape[1] * target.shape[2] if convention == "released" else 1
    return channel_alignment(target, teacher, channel_weights[None], convention, energy) / area


def feature_energy(features: Array) -> Array:
    """‖F‖² of each example, `[B]`, in float32."""
    return jnp.square(features.astype(jnp.float32)).sum((1, 2, 3))


def _squared_difference(target: Array, teacher: Array) -> Array:
    """D² in float32 whatever the compute dtype, with the positions flattened: `[B, H·W, C]`."""
    batch, height, width, channels = target.shape
    difference = target.astype(jnp.float32) - teacher.astype(jnp.float32)
    return jnp.square(difference).reshape(batch, height * width, channels)


def _scaled(convention: str, paper: Array, released: Array, energy: Array | None) -> Array:
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention!r}; it must be one of {CONVENTIONS}.")
    if convention == "normalised":
        if energy is None:
            raise ValueError("The convention 'normalised' needs the energy of the teacher's features.")
        # A layer that is silent on every image has nothing to keep, and must not divide by nothing.
        return released / jnp.maximum(energy, jnp.finfo(jnp.float32).tiny)
    return paper if convention == "paper" else released
