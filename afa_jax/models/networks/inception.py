"""Inception-V3 (Szegedy et al. 2016) at torchvision's layout and layer names.

Its published weights come from TensorFlow and expect images in [-1, 1]; torchvision reaches that from its usual
normalisation by `transform_input`, and here it is the network's own `mean` and `std`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from afa_jax.errors import UserError
from afa_jax.initializers import torch_linear
from afa_jax.models.layers import avg_pool, batch_norm, conv, max_pool
from afa_jax.models.network import Network, spread_taps

Kernel = int | tuple[int, int]


class BasicConv2d(nn.Module):
    """Convolution, BatchNorm (epsilon 1e-3) and ReLU; its output is what a tap of this name gives."""

    width: int
    kernel: Kernel = 1
    stride: int = 1
    padding: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = conv(self.width, self.kernel, stride=self.stride, padding=self.padding, dtype=self.dtype, name="conv")(x)
        return nn.relu(batch_norm(train, epsilon=1e-3, dtype=self.dtype, name="bn")(x))


class Block(nn.Module):
    """What the inception blocks share: named convolutions whose outputs are joined along the channels."""

    width: int = 0
    dtype: Any = jnp.float32

    def layer(self, x: Array, train: bool, name: str, width: int, kernel: Kernel = 1, **options: Any) -> Array:
        return BasicConv2d(width, kernel, dtype=self.dtype, name=name, **options)(x, train)

    def chain(self, x: Array, train: bool, prefix: str, *layers: tuple[int, Kernel]) -> Array:
        """`prefix_1`, `prefix_2`, …, one after the other."""
        for i, (width, kernel) in enumerate(layers, start=1):
            x = self.layer(x, train, f"{prefix}_{i}", width, kernel)
        return x


class InceptionA(Block):
    """35×35 (Mixed_5b, 5c, 5d); `width` is that of the pooled branch."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        return jnp.concatenate(
            [
                self.layer(x, train, "branch1x1", 64),
                self.chain(x, train, "branch5x5", (48, 1), (64, 5)),
                self.chain(x, train, "branch3x3dbl", (64, 1), (96, 3), (96, 3)),
                self.layer(avg_pool(x, 3, 1, 1), train, "branch_pool", self.width),
            ],
            axis=-1,
        )


class InceptionB(Block):
    """35×35 to 17×17 (Mixed_6a)."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        double = self.chain(x, train, "branch3x3dbl", (64, 1), (96, 3))
        return jnp.concatenate(
            [
                self.layer(x, train, "branch3x3", 384, 3, stride=2, padding=0),
                self.layer(double, train, "branch3x3dbl_3", 96, 3, stride=2, padding=0),
                max_pool(x, padding=0),
            ],
            axis=-1,
        )


class InceptionC(Block):
    """17×17 (Mixed_6b to 6e); `width` is that of the factorised 7×7 convolutions."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        w, row, column = self.width, (1, 7), (7, 1)
        return jnp.concatenate(
            [
                self.layer(x, train, "branch1x1", 192),
                self.chain(x, train, "branch7x7", (w, 1), (w, row), (192, column)),
                self.chain(x, train, "branch7x7dbl", (w, 1), (w, column), (w, row), (w, column), (192, row)),
                self.layer(avg_pool(x, 3, 1, 1), train, "branch_pool", 192),
            ],
            axis=-1,
        )


class InceptionD(Block):
    """17×17 to 8×8 (Mixed_7a)."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        single = self.chain(x, train, "branch3x3", (192, 1))
        long = self.chain(x, train, "branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)))
        return jnp.concatenate(
            [
                self.layer(single, train, "branch3x3_2", 320, 3, stride=2, padding=0),
                self.layer(long, train, "branch7x7x3_4", 192, 3, stride=2, padding=0),
                max_pool(x, padding=0),
            ],
            axis=-1,
        )


class InceptionE(Block):
    """8×8 (Mixed_7b, 7c), with two branches that fork at their ends."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        single = self.chain(x, train, "branch3x3", (384, 1))
        double = self.chain(x, train, "branch3x3dbl", (448, 1), (384, 3))
        return jnp.concatenate(
            [
                self.layer(x, train, "branch1x1", 320),
                self.layer(single, train, "branch3x3_2a", 384, (1, 3)),
                self.layer(single, train, "branch3x3_2b", 384, (3, 1)),
                self.layer(double, train, "branch3x3dbl_3a", 384, (1, 3)),
                self.layer(double, train, "branch3x3dbl_3b", 384, (3, 1)),
                self.layer(avg_pool(x, 3, 1, 1), train, "branch_pool", 192),
            ],
            axis=-1,
        )


class AuxiliaryHead(nn.Module):
    """The second classifier, from the 17×17 maps; a tap named `AuxLogits` gives its logits in train mode."""

    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = BasicConv2d(128, dtype=self.dtype, name="conv0")(avg_pool(x, 5, 3, 0), train)
        x = BasicConv2d(768, 5, padding=0, dtype=self.dtype, name="conv1")(x, train)
        return torch_linear(self.num_classes, 768, name="fc")(x.astype(jnp.float32).mean((1, 2)))


class InceptionV3(nn.Module):
    """`[B, H, W, 3]` to float32 `[B, num_classes]`; H and W at least 75, in train mode with `auxiliary` at least 299.

    With `auxiliary` the second head is there and runs in train mode, as in torchvision, so that its statistics move;
    AFA and DELTA give its loss no weight.

    Raises:
      UserError: smaller images, of which a layer without padding would leave nothing.
    """

    num_classes: int
    auxiliary: bool = True
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        def layer(x: Array, name: str, width: int, kernel: Kernel, **options: Any) -> Array:
            return BasicConv2d(width, kernel, dtype=self.dtype, name=name, **options)(x, train)

        both_heads = self.auxiliary and (train or self.is_initializing())
        if min(x.shape[1:3]) < (least := 299 if both_heads else 75):
            hint = ", or the network inception_v3_no_aux" if both_heads else ""
            raise UserError(f"Inception-V3 needs images of at least {least} pixels: set data.image_size={least}{hint}.")
        x = layer(x, "Conv2d_1a_3x3", 32, 3, stride=2, padding=0)
        x = layer(x, "Conv2d_2a_3x3", 32, 3, padding=0)
        x = layer(x, "Conv2d_2b_3x3", 64, 3)
        x = max_pool(x, padding=0)
        x = layer(x, "Conv2d_3b_1x1", 80, 1)
        x = layer(x, "Conv2d_4a_3x3", 192, 3, padding=0)
        x = max_pool(x, padding=0)
        for name, width in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = InceptionA(width, self.dtype, name=name)(x, train)
        x = InceptionB(dtype=self.dtype, name="Mixed_6a")(x, train)
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = InceptionC(width, self.dtype, name=name)(x, train)
        if both_heads:
            AuxiliaryHead(self.num_classes, self.dtype, name="AuxLogits")(x, train)
        x = InceptionD(dtype=self.dtype, name="Mixed_7a")(x, train)
        for name in ("Mixed_7b", "Mixed_7c"):
            x = InceptionE(dtype=self.dtype, name=name)(x, train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x.astype(jnp.float32).mean((1, 2)))
        return torch_linear(self.num_classes, 2048, name="fc")(x)


def _build(num_classes: int, dtype: Any) -> InceptionV3:
    return InceptionV3(num_classes, dtype=dtype)


def _build_without_auxiliary(num_classes: int, dtype: Any) -> InceptionV3:
    return InceptionV3(num_classes, auxiliary=False, dtype=dtype)


_LAYERS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)
# The last convolutions of each block's branches, in the order in which their outputs are put together; the blocks that
# halve the resolution end with a pool, which has no filters.
_ENDS = {
    **dict.fromkeys(
        ("Mixed_5b", "Mixed_5c", "Mixed_5d"), ("branch1x1", "branch5x5_2", "branch3x3dbl_3", "branch_pool")
    ),
    "Mixed_6a": ("branch3x3", "branch3x3dbl_3"),
    **dict.fromkeys(
        ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), ("branch1x1", "branch7x7_3", "branch7x7dbl_5", "branch_pool")
    ),
    "Mixed_7a": ("branch3x3_2", "branch7x7x3_4"),
    **dict.fromkeys(
        ("Mixed_7b", "Mixed_7c"),
        ("branch1x1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_3a", "branch3x3dbl_3b", "branch_pool"),
    ),
}
_FILTERS = {
    layer: tuple(f"{layer}.{end}.conv" for end in _ENDS[layer]) if layer in _ENDS else (f"{layer}.conv",)
    for layer in _LAYERS
}
_COMMON: dict[str, Any] = {
    "image_size": 299,
    "resize": 320,
    "taps": spread_taps(_LAYERS, ["Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"]),
    "embedding": "Dropout_0",
    "filters": _FILTERS,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "weights": {"imagenet1k_v1": "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"},
}

NETWORKS = {
    "inception_v3": Network(_build, also_new=("AuxLogits.fc",), **_COMMON),
    # For fine-tuning: the published files fit, and what AFA and DELTA give no weight is not carried along.
    "inception_v3_no_aux": Network(_build_without_auxiliary, left_out=("AuxLogits",), **_COMMON),
}
