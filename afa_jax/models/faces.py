"""What networks for aligned faces of 112×112 pixels have in common.

Each puts a plain classification layer, `head`, behind its embedding: the tap `head:input`. Published files come without
that layer.
"""

from typing import Any

import flax.linen as nn
from jax import Array

from afa_jax.errors import UserError
from afa_jax.models.network import HALF

SIDE = 112
NORM_WORDS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
"""From PyTorch's words for the arrays of a BatchNorm, and of a PReLU's slope, to MXNet's."""


def face_head(num_classes: int, fan_in: int, *, name: str | None = None) -> nn.Dense:
    """A classification layer that starts as ArcFace's class weights do: N(0, 0.01), and a bias of zero."""
    return nn.Dense(num_classes, kernel_init=nn.initializers.normal(0.01), name=name)


def check_side(name: str, images: Array) -> None:
    """Refuses images of another size, for which the layer that makes the embedding is not made.

    Raises:
      UserError: they are `[B, H, W, 3]` with H or W other than 112.
    """
    if images.shape[1:3] != (SIDE, SIDE):
        raise UserError(f"{name} takes images of {SIDE}×{SIDE} pixels: set data.image_size={SIDE}.")


FACES: dict[str, Any] = {
    "image_size": SIDE,
    "resize": SIDE,
    "head": "head",
    "headless_files": True,
    "new_head": face_head,
    "mean": HALF,
    "std": (128 / 255,) * 3,  # (x − 127.5) / 128 of grey levels
}
"""Of every `Network` entry."""
