"""A network's weights: where they are, how they are read, and that every one of them is accounted for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from afa_jax import trees
from afa_jax.download import fetch
from afa_jax.errors import UserError, nearest
from afa_jax.files import user_path, whole
from afa_jax.models import mxnet_file, torch_file
from afa_jax.models.convert import (
    Converted,
    MisfitError,
    differences,
    from_state_dict,
    shapes,
    to_state_dict,
    told,
)
from afa_jax.models.zoo import NETWORKS, create, initialise, known
from afa_jax.types import Variables

FILE = "model.safetensors"
_ABOUT = "afa_jax"
"""Under this key of a safetensors file's metadata stands what `save` was told."""


def load(network: str, source: str | Path, num_classes: int | None = None, *, seed: int = 0) -> Variables:
    """Reads a network's weights, as float32.

    Args:
      network: its name in the zoo.
      source: a published name (`imagenet1k_v1`, `imagenet1k_v2`, `places365`), which is fetched once into the cache; a
        file in PyTorch's format (`.pth`, `.pth.tar`), in MXNet's (`.params`) or a `.safetensors` file, in a layout that
        the network knows; or a saved model of our own, the file or its folder.
      num_classes: outputs of the head; where the source has another number, the head is made new. None keeps its own,
        which of a file without one, as face networks are published, has none: its arrays are then empty.
      seed: of a new head.

    Raises:
      UserError: no such source, a file that is damaged or unsafe, or one that does not fit `network`.
    """
    found = read(network, source)
    if num_classes is not None and num_classes != found.num_classes:
        return with_new_head(found.variables, network, num_classes, jax.random.PRNGKey(seed))
    return jax.tree.map(jnp.asarray, found.variables)


def read(network: str, source: str | Path) -> Converted:
    """As `load`, with what stands beside the variables; the arrays are NumPy's."""
    known(network)
    path = _locate(network, source)
    if path.suffix == ".params":
        content = mxnet_file.read(path)
    elif path.suffix != ".safetensors":
        content = torch_file.read(path)
    else:
        content, about = _read_safetensors(path)
        if about is not None:
            return _own(network, path, content, about)
    try:
        return from_state_dict(network, content)
    except MisfitError as error:
        raise MisfitError(f"{path}: {error}", error.faults) from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def save(folder: Path, network: str, variables: Variables, **about: Any) -> None:
    """Writes `model.safetensors` into `folder`, whole or not at all.

    Args:
      network: its name in the zoo.
      about: what else to keep, such as `classes`; read back by `describe`.
    """
    arrays = {key: np.asarray(value) for key, value in flatten_dict(dict(variables), sep="/").items()}
    folder.mkdir(parents=True, exist_ok=True)
    _write_safetensors(folder / FILE, arrays, {_ABOUT: json.dumps({"network": network, **about})})


def describe(source: str | Path) -> dict[str, Any]:
    """What `save` was told of a saved model, the file or its folder: `network`, `classes`, …"""
    path = Path(source)
    return _read_safetensors(path / FILE if path.is_dir() else path)[1] or {}


def about(network: str, source: str | Path) -> dict[str, Any]:
    """What is known of the weights that `source` names: of published ones by which loss they were trained.

    Raises:
      UserError: there are none.
    """
    found = find(network, source)
    if isinstance(found, str):
        return {"loss": "softmax"}
    return describe(found) if found.suffix == ".safetensors" else {}


def export(
    path: Path, variables: Variables, counters: Mapping[str, int] | None = None, network: str | None = None
) -> None:
    """Writes the weights for PyTorch, in float32: as safetensors by that suffix, else as a torch file.

    Args:
      counters: BatchNorm's; 0 where none are known.
      network: its name in the zoo, whose files' layout is taken; None takes the layers' paths as keys.
    """
    state = to_state_dict(variables, counters, network)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        _write_safetensors(path, state, {"format": "pt"})
    else:
        torch_file.write(path, state)


def with_new_head(variables: Variables, network: str, num_classes: int, key: jax.Array) -> Variables:
    """The same network with a head of `num_classes` outputs that starts as the network's own does."""
    params = variables["params"]
    for i, head in enumerate(NETWORKS[network].heads):
        inputs = len(trees.get(params, head)["kernel"])
        fresh = NETWORKS[network].new_head(num_classes, inputs).init(jax.random.fold_in(key, i), jnp.zeros((1, inputs)))
        params = trees.put(params, head, fresh["params"])
    return jax.tree.map(jnp.asarray, {**variables, "params": params})


def _locate(network: str, source: str | Path) -> Path:
    found = find(network, source)
    return found if isinstance(found, Path) else fetch(found)


def find(network: str, source: str | Path) -> Path | str:
    """The file that `source` names, or the address of the published one; nothing is fetched or read.

    Raises:
      UserError: it names neither.
    """
    published = NETWORKS[network].weights
    if str(source) in published:
        return published[str(source)]
    path = user_path(source)
    try:
        path = path / FILE if path.is_dir() else path
        if path.is_file():
            return path
    except (OSError, ValueError):  # a name that no file can have
        pass
    hint = f" or a published name: {nearest(str(source), published)}" if published else "."
    raise UserError(f"There are no weights {source} for {network}: source.weights names a file{hint}")


def _own(network: str, path: Path, flat: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> Converted:
    if about.get("network") != network:
        raise UserError(f"{path} holds the network {about.get('network')!r}, not {network!r}.")
    spec = NETWORKS[network]
    head = flat.get(f"params/{spec.head.replace('.', '/')}/kernel")
    num_classes = head.shape[-1] if head is not None and head.ndim == 2 else 1
    expected = jax.eval_shape(
        lambda key: initialise(create(network, num_classes), key, spec.image_size), jax.random.key(0)
    )
    faults = differences(shapes(flatten_dict(expected, sep="/")), shapes(flat))
    if faults:
        raise MisfitError(f"{path} does not fit the network {network}: {told(faults)}.", faults)
    arrays = {key: value.astype(np.float32) for key, value in flat.items()}
    counters = about.get("counters", {})
    if not isinstance(counters, dict) or not all(type(count) is int for count in counters.values()):
        raise UserError(f"{path} is no saved model: what it says of itself is damaged.")
    return Converted(unflatten_dict(arrays, sep="/"), num_classes, counters, ())


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """(the arrays, what `save` wrote beside them; None for a file of others)."""
    try:
        with safe_open(path, "numpy") as file:
            about = (file.metadata() or {}).get(_ABOUT)
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the file is no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}).") from error
    except (AttributeError, TypeError) as error:  # its reader's answer to types that NumPy does not have
        raise UserError(f"{path} has numbers of a type that cannot be read ({error}).") from error
    try:
        read = None if about is None else dict(json.loads(about))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is no saved model: what it says of itself is damaged.") from error
    return arrays, read


def _write_safetensors(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    try:
        with whole(path) as partial:
            partial.touch()
            mode = partial.stat().st_mode  # as for any file; the library would let nobody else read it
            save_file(arrays, partial, metadata)
            partial.chmod(mode)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be written ({error}).") from error
