"""A network some of whose channels are left out, as DELTA's weights need it, without computing twice what stays."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from afa_jax.types import Variables

Masks = Mapping[str, Array]
"""By a layer's path, what the channels of its output are multiplied by, `[C]`."""


def masked(
    module: nn.Module,
    variables: Variables,
    images: Array,
    masks: Masks,
    *,
    readers: frozenset[str] = frozenset(),
    channel: Array | int = 0,
) -> Array:
    """The logits in eval mode, with the channels of some layers' outputs multiplied by a mask.

    Args:
      readers: `channel_readers` of these layers. What such a convolution puts out differs from the unmasked network's
        by one channel times its row of the kernel, so it is not computed anew; the rest is the same whichever channel
        is masked, and under `vmap` computed once.
      channel: the one that is masked, if there are readers; the mask of the others must be one.
    """
    whole: dict[str, tuple[Array, Array]] = {}

    def remember(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output, name = call(*args, **kwargs), _path(context)
        if name in readers:
            whole[name] = args[0], output
        return output

    def multiply(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        name = _path(context)
        if name in whole:
            taken_in, output = whole[name]
            before, now = (jax.lax.dynamic_index_in_dim(x, channel, -1) for x in (taken_in, args[0]))
            down, right = _strides(context.module)
            kernel: Any = context.module.get_variable("params", "kernel")
            row = jax.lax.dynamic_index_in_dim(kernel[0, 0], channel, 0, keepdims=False)
            return output + (now - before)[:, ::down, ::right] * row
        output = call(*args, **kwargs)
        return output if name not in masks else output * masks[name].astype(output.dtype)

    if readers:
        with nn.intercept_methods(remember):
            module.apply(variables, images, train=False)
    with nn.intercept_methods(multiply):
        logits: Any = module.apply(variables, images, train=False)
    return logits


def channel_readers(
    module: nn.Module, variables: Variables, image_size: int, masks: Callable[[Array], Masks], channels: int
) -> frozenset[str]:
    """The 1×1 convolutions to which a masked channel comes as that one channel of what they take in.

    Found by putting NaN into a channel, which leaves its mark on all that depends on it.

    Args:
      masks: from a mask `[channels]` of a tap to those of the layers that make it.
    """

    @jax.jit  # all arrays are arguments: what comes from constants would be computed when it is compiled
    def marks(variables: Variables, images: Array, channel: Array) -> dict[str, Array]:
        found: dict[str, Array] = {}
        poison = masks(jnp.ones(channels).at[channel].set(jnp.nan))

        def look(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            layer, name = context.module, _path(context)
            if isinstance(layer, nn.Conv) and name and _is_pointwise(layer):
                # One that runs twice is no reader: what the mark would say is true of one of its calls.
                found[name] = jnp.isnan(args[0]).any((0, 1, 2)) if name not in found else jnp.zeros(args[0].shape[-1])
            output = call(*args, **kwargs)
            return output if name not in poison else output * poison[name].astype(output.dtype)

        with nn.intercept_methods(look):
            module.apply(variables, images, train=False)
        return found

    def reads(name: str, channel: int, marked: Mapping[str, Array]) -> bool:
        return np.flatnonzero(marked[name]).tolist() == [channel]

    images = jnp.zeros((1, image_size, image_size, 3))
    first, last = (marks(variables, images, jnp.int32(channel)) for channel in (0, channels - 1))
    return frozenset(name for name in first if reads(name, 0, first) and reads(name, channels - 1, last))


def _path(context: nn.module.InterceptorContext) -> str:
    return ".".join(context.module.path) if context.method_name == "__call__" else ""


def _is_pointwise(layer: Any) -> bool:
    """A 1×1 convolution: at each position a sum over the channels taken in."""
    unpadded = layer.padding == "VALID" if isinstance(layer.padding, str) else not np.any(layer.padding)
    return unpadded and layer.feature_group_count == 1 and all(side == 1 for side in np.atleast_1d(layer.kernel_size))


def _strides(layer: Any) -> tuple[int, int]:
    strides = layer.strides or 1
    return (strides, strides) if isinstance(strides, int) else tuple(strides)
