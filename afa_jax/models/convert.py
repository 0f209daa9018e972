"""Between PyTorch's `state_dict` and Flax variables: one rule for every network, because the layers have torch's names.

A torch key is a layer's path and a word; here it is the path in one of two collections and another word:

    layer1.0.conv1.weight  [out, in, h, w]   params/layer1/0/conv1/kernel  [h, w, in, out]
    fc.weight              [out, in]         params/fc/kernel              [in, out]
    bn1.weight                               params/bn1/scale
    bn1.running_mean                         batch_stats/bn1/mean

`num_batches_tracked`, which torch counts and does not use, has no place in the variables; it is kept beside them.
Files that name the same arrays otherwise have a `Layout` of the network; what is wrong with one is told in its words.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from afa_jax.errors import UserError
from afa_jax.models.network import Layout, Network
from afa_jax.models.zoo import NETWORKS, create
from afa_jax.types import Variables

_WORDS = {
    "kernel": "weight",
    "scale": "weight",
    "slope": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
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
      num_classes: outputs of the head; 0 where the file has none, and the head's arrays are then empty.
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
      UserError: an array is no real number's, or a weight that the network fixes at one is another.
      MisfitError: something is missing, left over or of another shape; the sentence counts all and names the first, the
        error lists them; where the file fits another network of the zoo, that one is named too.
    """
    spec, state = NETWORKS[network], unwrap(content)
    layout = _layout_of(network, state)
    arrays, counters = _without_counters(state)
    arrays = layout.adapt(arrays)
    dropped = tuple(key for key in arrays if key.startswith(tuple(f"{part}." for part in spec.left_out)))
    arrays = {key: value for key, value in arrays.items() if key not in dropped}
    num_classes = _num_classes(spec, arrays)
    places = _places(network, layout, num_classes)
    empty = {} if num_classes else {key: np.zeros(p.stored, np.float32) for key, p in places.items() if p.is_head}
    ones = {layout.key(key): places[layout.key(bias)].stored for key, bias in _ones(spec) if layout.key(key) in arrays}
    faults = differences({key: place.stored for key, place in places.items()} | ones, shapes(arrays | empty))
    if faults:
        raise _misfit(network, faults, arrays, places)
    trained = [] if layout.fills_ones else [key for key in ones if (arrays[key] != 1).any()]
    if trained:
        raise UserError(f"{trained[0]} is not 1 everywhere, as {network} has it: the file is of another network.")
    flat = {p.path: _to_flax(_real(key, (arrays | empty)[key]).reshape(p.shape)) for key, p in places.items()}
    layers = {_layer(key): _layer(place.key) for key, place in places.items()}
    counters = {layers.get(layer, layer): count for layer, count in counters.items()}
    return Converted(unflatten_dict(flat), num_classes, counters, dropped)


def to_state_dict(
    variables: Variables, counters: Mapping[str, int] | None = None, network: str | None = None
) -> dict[str, np.ndarray]:
    """The variables under torch's names and layouts, with a counter for each BatchNorm (0 where none is known).

    Args:
      network: its name in the zoo: in the first layout of its files, with the weights that it fixes at one, and without
        a head of no classes. None takes the layers' paths and what is there.
    """
    state = {}
    for path, value in _flat(variables).items():
        array = np.asarray(value)
        key = torch_key(path)
        state[key] = np.ascontiguousarray(array.transpose((3, 2, 0, 1)) if array.ndim == 4 else array.T)
        if path[-1] == "var":
            layer = key.removesuffix(".running_var")
            state[layer + _COUNTER] = np.array((counters or {}).get(layer, 0), np.int64)
    return state if network is None else _in_first_layout(state, NETWORKS[network])


def torch_key(path: tuple[str, ...]) -> str:
    """`("params", "layer1", "0", "conv1", "kernel")` to `layer1.0.conv1.weight`."""
    return ".".join((*path[1:-1], _WORDS[path[-1]]))


def file_key(spec: Network, layout: Layout, key: str) -> str:
    """PyTorch's key of an array here, as a file of that layout has it; a head's, which is not published, stays."""
    return key if key.startswith(_heads(spec)) else layout.key(key)


def torch_shapes(network: str, num_classes: int) -> Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """By torch key: the shape that torch gives the array, and its path in the variables."""
    return _torch_shapes(create(network, num_classes), NETWORKS[network].image_size)


@cache
def _torch_shapes(module: nn.Module, size: int) -> Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    variables = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    shapes = {torch_key(path): (_torch_shape(leaf.shape), path) for path, leaf in _flat(variables).items()}
    return MappingProxyType(shapes)


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


class _Place(NamedTuple):
    """Where an array of a file belongs: its key and shape for PyTorch, its path here, and its shape in the file."""

    key: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    stored: tuple[int, ...]
    is_head: bool


def _places(network: str, layout: Layout, num_classes: int) -> dict[str, _Place]:
    """By the file's key."""
    spec, places = NETWORKS[network], {}
    for key, (shape, path) in torch_shapes(network, num_classes).items():
        stored = shape[:2] if key in layout.matrices else shape
        places[file_key(spec, layout, key)] = _Place(key, shape, path, stored, key.startswith(_heads(spec)))
    return places


def _ones(spec: Network) -> list[tuple[str, str]]:
    """The weights that are fixed at one, each with the bias beside it, which has its shape."""
    return [(key, f"{_layer(key)}.bias") for key in spec.ones]


def _heads(spec: Network) -> tuple[str, ...]:
    return tuple(f"{head}." for head in spec.heads)


def _layout_of(network: str, state: Mapping[str, Any]) -> Layout:
    """Of the network's layouts the one that knows most of the keys."""
    first, *others = NETWORKS[network].layouts
    return (
        max((first, *others), key=lambda each: sum(k in state for k in _places(network, each, 1))) if others else first
    )


def _num_classes(spec: Network, arrays: Mapping[str, np.ndarray]) -> int:
    if spec.headless_files and not any(key.startswith(_heads(spec)) for key in arrays):
        return 0
    head = arrays.get(f"{spec.head}.weight")
    return max(1, len(head)) if head is not None and head.ndim == 2 else 1


def _without_counters(state: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    layers = {_layer(key) for key in state if key.endswith(".running_var")}
    counters = {layer: _count(layer, state[layer + _COUNTER]) for layer in layers if layer + _COUNTER in state}
    counted = {layer + _COUNTER for layer in counters}
    arrays = {key: np.asarray(value) for key, value in state.items() if key not in counted}
    return arrays, counters


def _layer(key: str) -> str:
    return key.rpartition(".")[0]


def _in_first_layout(state: Mapping[str, np.ndarray], spec: Network) -> dict[str, np.ndarray]:
    layout = spec.layouts[0]
    ones = {key: np.ones_like(state[bias]) for key, bias in _ones(spec)}
    left = () if state[f"{spec.head}.weight"].size else _heads(spec)
    return {
        file_key(spec, layout, key): value[:, :, 0, 0] if key in layout.matrices else value
        for key, value in {**state, **ones}.items()
        if not key.startswith(left)
    }


def _misfit(
    network: str, faults: Mapping[str, list[str]], arrays: Mapping[str, np.ndarray], places: Mapping[str, _Place]
) -> MisfitError:
    hints = [
        hint
        for key, place in places.items()
        if (hint := NETWORKS[network].hints.get(place.key)) and key in arrays and arrays[key].shape != place.stored
    ]
    if similar := _looks_like(arrays, but=network):
        hints.append(f"it looks like {similar}")
    return MisfitError(f"The weights do not fit the network {network}: {'; '.join([told(faults), *hints])}.", faults)


def _looks_like(arrays: Mapping[str, np.ndarray], but: str) -> str | None:
    for name, spec in NETWORKS.items():
        for layout in spec.layouts if name != but else ():
            expected = {key: place.stored for key, place in _places(name, layout, 1).items() if not place.is_head}
            known = (*_heads(spec), *(layout.key(key) for key in spec.ones))
            if expected == {key: shape for key, shape in shapes(arrays).items() if not key.startswith(known)}:
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
