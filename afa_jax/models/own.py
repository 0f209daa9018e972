"""A person's own network in the zoo: any linen module, checked before anything is trained with it."""

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from afa_jax import trees
from afa_jax.errors import UserError, nearest
from afa_jax.models import zoo
from afa_jax.models.network import Network

NAMES: set[str] = set()
"""Of the networks that were registered."""
_CLASSES = 7  # with which a network is tried; few layers have as many channels


def register(name: str, network: Network) -> str:
    """Puts a network into the zoo for this process, so that configs, runs and the functions here know its name.

    The module is called as `module(images, train=False)`, which is its default, images float32 `[B, H, W, 3]`, and
    gives logits `[B, num_classes]`; it may have BatchNorm or not. A tap gives a feature map `[B, H, W, C]`, or tokens
    `[B, N, C]`, which are taken as a map of N × 1 positions.

    Args:
      name: a new one; one that was registered before stands for the new network from now on.

    Returns:
      The name.

    Raises:
      UserError: the zoo has a network of that name; the module cannot be called; its head is not where `network.head`
        says; or a tap is no layer or gives neither a map nor tokens.
    """
    if name in zoo.NETWORKS and name not in NAMES:
        raise UserError(f"The zoo has a network {name!r} already: register yours under another name.")
    _check(name, network)
    zoo.NETWORKS[name] = replace(network)
    NAMES.add(name)
    return name


def _check(name: str, network: Network) -> None:
    shape = (1, network.image_size, network.image_size, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)

    def run(key: jax.Array, images: jax.Array) -> Any:
        variables = module.init(key, images)
        module.apply(variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
        return variables, module.apply(variables, images, train=False)

    try:
        module = network.build(_CLASSES, jnp.float32)
        variables, logits = jax.eval_shape(run, jax.random.key(0), images)
    except Exception as error:  # whatever a person's code raises
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"The network {name!r} cannot be run as build({_CLASSES}, float32)(images, train=False), False being the "
            f"default, with images {list(shape)}: {reason}"
        ) from error
    if getattr(logits, "shape", None) != (1, _CLASSES):
        raise UserError(f"The network {name!r} must give logits [batch, classes], and gives {_told(logits)}.")
    try:
        kernel = trees.get(variables["params"], network.head)["kernel"].shape
    except (KeyError, TypeError):
        kernel = ()
    if len(kernel) != 2 or kernel[-1] != _CLASSES:
        layers = {".".join(path[:-1]) for path in _paths(variables["params"]) if path[-1] == "kernel"}
        raise UserError(
            f"The network {name!r} has no Dense layer {network.head!r} that gives the logits; "
            f"{nearest(network.head, layers)}"
        )
    _check_taps(name, network, module)


def _check_taps(name: str, network: Network, module: nn.Module) -> None:
    if not any(network.taps.values()):
        raise UserError(f"The network {name!r} names no taps: give taps={{number: paths of so many layers}}.")
    shapes = zoo.layer_shapes(module, network.image_size)
    for number, taps in network.taps.items():
        if len(taps) != number:
            raise UserError(f"The network {name!r} lists {len(taps)} layers as its {number} taps.")
        for tap in taps:
            if tap not in shapes:
                raise UserError(f"The network {name!r} has no layer {tap!r} to tap; {nearest(tap, shapes)}")
            if len(shapes[tap]) not in (3, 4):
                maps = [layer for layer, shape in shapes.items() if len(shape) in (3, 4)]
                raise UserError(
                    f"The layer {tap!r} of {name!r} gives neither a map nor tokens but {list(shapes[tap])}; "
                    f"{nearest(tap, maps)}"
                )


def _paths(tree: Any) -> list[tuple[str, ...]]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [tuple(part.key for part in path) for path, _ in flat]


def _told(value: Any) -> str:
    return str(list(value.shape)) if hasattr(value, "shape") else type(value).__name__
