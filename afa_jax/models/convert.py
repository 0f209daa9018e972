"""Between PyTorch's `state_dict` and Flax variables: one rule for every network, because the layers have torch's names.

A torch key is a layer's path and a word; here it is the path in one of two collections and another word:

    layer1.0.conv1.weight  [out, in, h, w]   params/layer1/0/conv1/kernel  [h, w, in, out]
    fc.weight              [out, in]         params/fc/kernel              [in, out]
    bn1.weight                               params/bn1/scale
    bn1.running_mean                         batch_stats/bn1/mean

`num_batches_tracked`, which torch counts and does not use, has no place in the variables; it is kept beside them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from afa_jax.errors import UserError
from afa_jax.models.zoo import NETWORKS, create
from afa_jax.types import Variables

_WORDS = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_COUNTER = ".num_batches_tracked"
_WRAPPERS = ("state_dict", "model", "net_state_dict")


class MisfitError(UserError):
    """Weights that are not this network's; `faults` lists every key by what is wrong with it."""

    def __init__(self, sentence: str, faults: Mapping[str, list[str]]):
        super().__init__(sentence)
        self.faults = faults


@dataclass(frozen=True)
class Converted:
    """A network from a `state_dict`.

    Attributes:
      counters: `num_batches_tracked` by layer.
      dropped: keys of parts that this network is defined without, such as an auxiliary head.
    """

    variables: Variables
    num_classes: int
    counters: dict[str, int]
    dropped: tuple[str, ...]


def from_state_dict(network: str, content: Any) -> Converted:
    """Puts every array of a `state_dict` in its place, as float32.

    Args:
      network: its name in the zoo.
      content: the `state_dict`, or a dictionary that holds it under a customary name; keys may begin with `module.`.

    Raises:
      UserError: an array is no real number's.
      MisfitError: something is missing, left over or of another shape; the sentence counts all and names the first, the
        error lists them; where the file fits another network of the zoo, that one is named too.
    """
    spec, state = NETWORKS[network], unwrap(content)
    layers = {key.removesuffix(".running_var") for key in state if key.endswith(".running_var")}
    counters = {layer: _count(layer, state.pop(layer + _COUNTER)) for layer in layers if layer + _COUNTER in state}
    arrays = {key: np.asarray(value) for key, value in state.items()}
    dropped = tuple(key for key in arrays if key.startswith(tuple(f"{part}." for part in spec.left_out)))
    arrays = {key: value for key, value in arrays.items() if key not in dropped}
    head = arrays.get(f"{spec.head}.weight")
    num_classes = max(1, len(head)) if head is not None and head.ndim == 2 else 1
    expected = torch_shapes(network, num_classes)
    faults = differences({key: shape for key, (shape, _) in expected.items()}, shapes(arrays))
    if faults:
        similar = _looks_like(arrays, but=network)
        hint = f"; it looks like {similar}" if similar else ""
        raise MisfitError(f"The weights do not fit the network {network}: {told(faults)}{hint}.", faults)
    flat = {path: _to_flax(_real(key, arrays[key])) for key, (_, path) in expected.items()}
    return Converted(unflatten_dict(flat), num_classes, counters, dropped)


def to_state_dict(variables: Variables, counters: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """The variables under torch's names and layouts, with a counter for each BatchNorm (0 where none is known)."""
    state = {}
    for path, value in _flat(variables).items():
        array = np.asarray(value)
        key = torch_key(path)
        state[key] = np.ascontiguousarray(array.transpose((3, 2, 0, 1)) if array.ndim == 4 else array.T)
        if path[-1] == "var":
            layer = key.removesuffix(".running_var")
            state[layer + _COUNTER] = np.array((counters or {}).get(layer, 0), np.int64)
    return state


def torch_key(path: tuple[str, ...]) -> str:
    """`("params", "layer1", "0", "conv1", "kernel")` to `layer1.0.conv1.weight`."""
    return ".".join((*path[1:-1], _WORDS[path[-1]]))


def torch_shapes(network: str, num_classes: int) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """By torch key: the shape that torch gives the array, and its path in the variables."""
    module, size = create(network, num_classes), NETWORKS[network].image_size
    variables = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    return {torch_key(path): (_torch_shape(leaf.shape), path) for path, leaf in _flat(variables).items()}


def unwrap(content: Any) -> dict[str, np.ndarray]:
    """Finds the `state_dict` in what a file holds.

    Raises:
      UserError: there is none.
    """
    for _ in range(4):
        inner = [content.get(key) for key in _WRAPPERS] if isinstance(content, Mapping) else []
        content = next((value for value in inner if isinstance(value, Mapping)), content)
    if not (
        isinstance(content, Mapping)
        and content
        and all(isinstance(key, str) and hasattr(value, "shape") for key, value in content.items())
    ):
        found = f"the keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else type(content)
        raise UserError(f"The file holds no state_dict but {found}.")
    wrapped = all(key.startswith("module.") for key in content)
    return {key.removeprefix("module.") if wrapped else key: value for key, value in content.items()}


def differences(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """What is missing, unexpected or of another shape, by that word; empty if nothing is."""
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{key}: {list(found[key])} for {list(expected[key])}"
            for key in sorted(expected.keys() & found.keys())
            if tuple(expected[key]) != tuple(found[key])
        ],
    }
    return {fault: keys for fault, keys in faults.items() if keys}


def told(faults: Mapping[str, list[str]]) -> str:
    """The faults in words, the first of each named."""
    return "; ".join(f"{len(keys)} {fault} ({_some(keys)})" for fault, keys in faults.items())


def shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in arrays.items()}


def _looks_like(arrays: Mapping[str, np.ndarray], but: str) -> str | None:
    for name, spec in NETWORKS.items():
        heads = tuple(f"{head}." for head in spec.heads)
        if name != but:
            expected = {key: shape for key, (shape, _) in torch_shapes(name, 1).items() if not key.startswith(heads)}
            if expected == {key: shape for key, shape in shapes(arrays).items() if not key.startswith(heads)}:
                return name
    return None


def _some(keys: Iterable[str], count: int = 3) -> str:
    keys = list(keys)
    return ", ".join(keys[:count]) + (", …" if len(keys) > count else "")


def _count(layer: str, value: Any) -> int:
    value = np.asarray(value)
    if value.shape not in ((), (1,)) or value.dtype.kind not in "iu":
        raise UserError(f"{layer}{_COUNTER} is no whole number.")
    return int(value.reshape(()))


def _real(key: str, value: np.ndarray) -> np.ndarray:
    if value.dtype.kind != "f" and value.dtype != ml_dtypes.bfloat16:
        raise UserError(f"{key} has numbers of type {value.dtype}, where real ones belong.")
    return value


def _to_flax(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    return np.ascontiguousarray(array.transpose((2, 3, 1, 0)) if array.ndim == 4 else array.T)


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _flat(variables: Any) -> dict[tuple[str, ...], Any]:
    return flatten_dict(dict(variables))
