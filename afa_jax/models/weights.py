"""A network's weights on disk: one safetensors file, strictly checked against the network that reads it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from afa_jax.errors import UserError
from afa_jax.models.zoo import NETWORKS, create, initialise
from afa_jax.types import Variables

FILE = "model.safetensors"


def save(folder: Path, network: str, variables: Variables, **about: Any) -> None:
    """Writes `model.safetensors` into `folder`, whole or not at all.

    Args:
      network: its name in the zoo.
      about: what else to keep, such as `classes`; read back by `describe`.
    """
    arrays = {key: np.asarray(value) for key, value in flatten_dict(dict(variables), sep="/").items()}
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FILE}.partial"
    save_file(arrays, partial, {"about": json.dumps({"network": network, **about})})
    os.replace(partial, folder / FILE)


def describe(source: str | Path) -> dict[str, Any]:
    """What `save` was told of a saved network, a file or its folder: `network`, `classes`, …"""
    return _read(_file(source))[1]


def load(network: str, source: str | Path, num_classes: int | None = None, *, seed: int = 0) -> Variables:
    """Reads a saved network.

    Args:
      network: its name in the zoo.
      source: the saved file, or the folder that holds it.
      num_classes: outputs of the head; where the file has another number, the head is made new. None keeps the file's.
      seed: of a new head.

    Raises:
      UserError: no such file, not a saved network, or one that does not fit `network`; all differing keys are counted
        and the first ones named.
    """
    path = _file(source)
    flat, about = _read(path)
    if about.get("network") != network:
        raise UserError(f"{path} holds the network {about.get('network')!r}, not {network!r}.")
    head = NETWORKS[network].head
    stored = flat[f"params/{head}/kernel"].shape[-1] if f"params/{head}/kernel" in flat else 0
    module = create(network, stored)
    expected = jax.eval_shape(lambda key: initialise(module, key, NETWORKS[network].image_size), jax.random.key(0))
    _check(path, _shapes(expected), flat)
    variables = unflatten_dict(flat, sep="/")
    if num_classes is not None and num_classes != stored:
        return with_new_head(variables, network, num_classes, jax.random.PRNGKey(seed))
    return jax.tree.map(jax.numpy.asarray, variables)


def with_new_head(variables: Variables, network: str, num_classes: int, key: jax.Array) -> Variables:
    """The same network with a head of `num_classes` outputs that starts as PyTorch's Linear does."""
    spec = NETWORKS[network]
    fresh = initialise(create(network, num_classes), key, spec.image_size)
    params = {**variables["params"], spec.head: fresh["params"][spec.head]}
    return jax.tree.map(jax.numpy.asarray, {**variables, "params": params})


def _file(source: str | Path) -> Path:
    path = Path(source).expanduser()
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"There is no file {path} with the source network's weights: give its path in source.weights.")
    return path


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            return {key: file.get_tensor(key) for key in file.keys()}, about  # noqa: SIM118 (the file is no mapping)
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file ({error}).") from error


def _shapes(variables: Any) -> dict[str, tuple[int, ...]]:
    flat: dict[str, Any] = flatten_dict(variables, sep="/")
    return {key: leaf.shape for key, leaf in flat.items()}


def _check(path: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, np.ndarray]) -> None:
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": sorted(k for k in expected.keys() & found.keys() if expected[k] != found[k].shape),
    }
    told = [f"{len(keys)} {fault} ({', '.join(keys[:3])})" for fault, keys in faults.items() if keys]
    if told:
        raise UserError(f"{path} does not fit the network: {'; '.join(told)}.")
