"""The networks by name, and one forward pass that also gives what chosen layers put out."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax import Array

from afa_jax.batch_axis import WHOLE, BatchAxis
from afa_jax.errors import UserError, nearest
from afa_jax.models import networks
from afa_jax.models.cosine import CosineHead
from afa_jax.models.network import Network
from afa_jax.registry import collect
from afa_jax.types import Outputs, Variables

NETWORKS: dict[str, Network] = collect(networks, "NETWORKS")
INPUT = ":input"
"""After a layer's path: what it takes in, in place of what it puts out."""


def create(name: str, num_classes: int, dtype: Any = jnp.float32) -> nn.Module:
    """Builds the network `name` with a head of `num_classes` outputs; `dtype` is that of its activations.

    Raises:
      UserError: no network has that name.
    """
    return known(name).build(num_classes, dtype)


def in_float32(module: nn.Module) -> nn.Module:
    """The same network with activations in float32."""
    if isinstance(module, CosineHead):
        return module.clone(network=in_float32(module.network))
    return module.clone(dtype=jnp.float32) if hasattr(module, "dtype") else module


def known(name: str) -> Network:
    """The entry of the network `name`.

    Raises:
      UserError: no network has that name.
    """
    if name not in NETWORKS:
        raise UserError(f"There is no network {name!r}; {nearest(name, NETWORKS)}")
    return NETWORKS[name]


def initialise(module: nn.Module, key: Array, image_size: int) -> Variables:
    """Random variables for square images of `image_size` pixels."""
    return _initialise(module, key, image_size)


@partial(jax.jit, static_argnums=(0, 2))
def _initialise(module: nn.Module, key: Array, image_size: int) -> Variables:
    return module.init(key, jnp.zeros((1, image_size, image_size, 3)))


def forward(
    module: nn.Module,
    variables: Variables,
    images: Array,
    *,
    taps: Sequence[str] = (),
    train: bool = False,
    rngs: dict[str, Array] | None = None,
    axis: BatchAxis = WHOLE,
) -> Outputs:
    """One pass of a network.

    Args:
      module: a linen module called as `module(images, train=…)`.
      variables: its `params` and, where it has BatchNorm, `batch_stats`.
      images: normalised, `[B, H, W, 3]`.
      taps: paths of the layers whose outputs are wanted, parts joined by dots: `layer4.2.conv3`; with `:input` at the
        end, what the layer takes in: `fc:input` is the embedding. Tokens, `[B, N, C]`, come as maps, `[B, N, 1, C]`.
      train: BatchNorm normalises by the batch and updates its statistics; dropout is active.
      rngs: keys for dropout.
      axis: over which the images are spread. In train mode BatchNorm normalises by the whole batch, and dropout is what
        it would be there.

    Raises:
      UserError: a tap is no layer of this network (the near ones are named), or a layer that runs more than once.
    """
    wanted = frozenset(taps)
    taken_in: dict[str, list[Array]] = {}

    def is_wanted(layer: nn.Module, method: str) -> bool:
        return method == "__call__" and ".".join(layer.path) in wanted

    def look_in(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        path = ".".join(context.module.path) + INPUT
        if path in wanted:
            taken_in.setdefault(path, []).append(args[0])
        return _over_whole_batch(call, args, kwargs, context.module, axis)

    mutable = ["intermediates", "batch_stats"] if train else ["intermediates"]
    with nn.intercept_methods(look_in):
        logits, updates = module.apply(
            variables,
            images,
            train=train,
            rngs=rngs,
            mutable=mutable,
            capture_intermediates=is_wanted if taps else False,
        )
    captured: Mapping[str, Any] = updates.get("intermediates") or {}
    features = {
        tap: _as_map(_only_call(module, taken_in.get(tap) or _captured(captured, tap), tap, images.shape[1]))
        for tap in taps
    }
    return Outputs(logits, features, updates.get("batch_stats", variables.get("batch_stats", {})))


def _over_whole_batch(call: Any, args: Any, kwargs: Any, layer: nn.Module, axis: BatchAxis) -> Any:
    """The call of a layer, of which those that look at more than one image see all parts of the batch."""
    if axis.name is None:
        return call(*args, **kwargs)
    if isinstance(layer, nn.BatchNorm):
        # A layer lives for one pass, and is frozen against assignment: no network need hand the name down to it.
        object.__setattr__(layer, "axis_name", axis.name)
    if isinstance(layer, nn.Dropout):
        return axis.own(call(axis.whole(args[0]), *args[1:], **kwargs))
    return call(*args, **kwargs)


def layer_shapes(module: nn.Module, image_size: int, *, train: bool = False) -> dict[str, tuple[int, ...]]:
    """The output shape, for one image, of every layer that gives one array, by its path; nothing is computed."""

    def run(key: Array, images: Array) -> Any:
        variables, rngs = module.init(key, images), {"dropout": key}
        mutable = ["intermediates", "batch_stats"]
        return module.apply(variables, images, train=train, rngs=rngs, mutable=mutable, capture_intermediates=True)[1]

    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    captured = jax.eval_shape(run, jax.random.key(0), images)["intermediates"]
    flat = jax.tree_util.tree_flatten_with_path(captured)[0]
    # A leaf's path is (layer parts…, "__call__", index of the call).
    return {
        ".".join(part.key for part in path[:-2]): leaf.shape
        for path, leaf in flat
        if len(path) > 2 and getattr(path[-2], "key", None) == "__call__"  # a layer that gives one array
    }


def kernels(module: nn.Module, image_size: int) -> set[str]:
    """The paths of all convolutions."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    params: dict[tuple[str, ...], Any] = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), images)["params"])
    return {".".join(path[:-1]) for path, leaf in params.items() if path[-1] == "kernel" and leaf.ndim == 4}


def _captured(captured: Mapping[str, Any], tap: str) -> Sequence[Array]:
    node: Any = captured
    for part in (*tap.split("."), "__call__"):
        node = node.get(part, {})
    return node


def _as_map(feature: Array) -> Array:
    """Tokens `[B, N, C]` as a map of N × 1 positions."""
    return feature[:, :, None] if feature.ndim == 3 else feature


def _only_call(module: nn.Module, calls: Sequence[Array], tap: str, size: int) -> Array:
    if not calls:
        raise UserError(f"The network has no layer {tap!r} to tap; {nearest(tap, layer_shapes(module, size))}")
    if len(calls) != 1:
        raise UserError(f"The layer {tap!r} runs {len(calls)} times in one pass, so it cannot be tapped.")
    return calls[0]
