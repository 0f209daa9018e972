"""On what a figure was made."""

import importlib.metadata
import os
import platform

import jax

from afa_jax import __version__


def device() -> str:
    """The kind of accelerator, or the CPU and its number of cores."""
    if jax.default_backend() == "cpu":
        return f"CPU, {os.cpu_count()} cores"
    return jax.local_devices()[0].device_kind


def versions() -> dict[str, str]:
    """Of this package, Python and what the numbers depend on."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"afa_jax": __version__, "python": platform.python_version(), **found}
