"""The alignment losses, per example and for one tapped layer.

With D = F_target − F_teacher, both `[B, H, W, C]`, each function gives one number an example, `[B]`, in float32. A
method sums over its tapped layers.

The published hyper-parameters belong to the scales of the released code, which its paper does not print; hence the two
conventions. `released` is what alpha was tuned for and the default; `paper` is the printed equation. Nothing here
reduces over the batch: the released DFA and DELTA *sum* over it where AST and ACT take its mean, and `methods` says so.
"""

from typing import Literal, get_args

import jax.numpy as jnp
from jax import Array

Convention = Literal["released", "paper"]
CONVENTIONS: tuple[str, ...] = get_args(Convention)


def spatial_alignment(target: Array, teacher: Array, attention: Array, convention: Convention = "released") -> Array:
    """Ω_S, the alignment weighted by position (AFA eq. 6).

    paper: Σ_jk ‖A_jk·D_jk‖²; released: ½·Σ_jk ‖A_jk·(H·W)·D_jk‖².

    Args:
      target, teacher: features `[B, H, W, C]`.
      attention: A, `[B, H·W]`, each row summing to 1.
      convention: which of the two scales.
    """
    _, height, width, _ = target.shape
    squares = _squared_difference(target, teacher).sum(-1)  # ‖D_jk‖², [B, HW]
    paper = (attention**2 * squares).sum(-1)
    return paper if _is_paper(convention) else 0.5 * (height * width) ** 2 * paper


def channel_alignment(target: Array, teacher: Array, attention: Array, convention: Convention = "released") -> Array:
    """Ω_C, the alignment weighted by channel (AFA eq. 8).

    paper: Σ_c a_c·‖D_c‖²; released: ½·Σ_c C·a_c·‖D_c‖².

    Args:
      target, teacher: features `[B, H, W, C]`.
      attention: a, `[B, C]`, each row summing to 1.
      convention: which of the two scales.
    """
    squares = _squared_difference(target, teacher).sum(1)  # ‖D_c‖², [B, C]
    paper = (attention * squares).sum(-1)
    return paper if _is_paper(convention) else 0.5 * target.shape[-1] * paper


def direct_alignment(target: Array, teacher: Array, convention: Convention = "released") -> Array:
    """Alignment without attention, DFA (AFA eq. 3).

    paper: ‖D‖²; released: ½·‖D‖².

    Args:
      target, teacher: features `[B, H, W, C]`.
      convention: which of the two scales.
    """
    paper = _squared_difference(target, teacher).sum((1, 2))
    return paper if _is_paper(convention) else 0.5 * paper


def _squared_difference(target: Array, teacher: Array) -> Array:
    """D² in float32 whatever the compute dtype, with the positions flattened: `[B, H·W, C]`."""
    batch, height, width, channels = target.shape
    difference = target.astype(jnp.float32) - teacher.astype(jnp.float32)
    return jnp.square(difference).reshape(batch, height * width, channels)


def _is_paper(convention: str) -> bool:
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention!r}; it must be one of {CONVENTIONS}.")
    return convention == "paper"
