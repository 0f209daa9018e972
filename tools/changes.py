"""What each change that made a step faster is worth, for `tools/benchmark.py changes`."""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import flax.linen as nn
import step_process
import step_speed
from jax import Array, lax

from afa_jax import compilation, memory
from afa_jax.errors import UserError
from afa_jax.models import convolution, layers, once


def _depthwise(x: Array, kernel: Array, strides: Any, padding: Any) -> Array:
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
    )


def _product(x: Array, matrix: Array) -> Array:
    return lax.conv_general_dilated(x, matrix[None, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _max_pool(x: Array, padding: int) -> Array:
    pads: Any = ((padding, padding), (padding, padding))
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=pads)


def _plain(x: Array, kernel: Array, padding: Any) -> Array:
    return _strided(x, kernel, 1, padding)


def _strided(x: Array, kernel: Array, stride: int, padding: Any) -> Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


MEMORY = "kept memory"
PIECES = "a compiler's pieces of memory set aside"
# By name, what is put in the place of what: the library's own. (The slice that a strided 1×1 convolution reads stays.)
OWN: dict[str, tuple[Any, str, Any]] = {
    "depthwise convolutions": (convolution, "depthwise", _depthwise),
    "1×1 convolutions": (convolution, "_product", _product),
    "Winograd's way": (convolution, "winograd", _plain),
    "first convolutions": (convolution, "_on_blocks", _strided),
    "max-pooling": (layers, "largest_of_nine", _max_pool),
    "what is computed once": (once, "_once", lambda x: x),
    "BatchNorm": (layers, "BatchNorm", partial(nn.BatchNorm, use_fast_variance=False)),
    "XLA's options": (compilation, "compiler_options", lambda: None),
    PIECES: (memory, "set_aside_fragments", lambda: 0),
}
CHANGES = (*OWN, MEMORY)


def undo(change: str) -> None:
    """In this process, before anything is traced; a name that is no change's does nothing."""
    if change in OWN:
        module, name, theirs = OWN[change]
        assert hasattr(module, name)
        setattr(module, name, theirs)


def changes(networks: Sequence[str], batch: int, repeats: int) -> dict[str, Any]:
    """Seconds of an AST step as it is, and without each change in turn with it, by network.

    A change of programs that makes no difference to a network's on this device is not measured there.
    """
    measured = {network: _measure(network, batch, repeats) for network in networks}
    rows = [{"change": change, **{n: measured[n][change] for n in networks}} for change in CHANGES]
    cells = [[row["change"], *(_cell(row[network]) for network in networks)] for row in rows]
    return {"batch": batch, "rows": rows, "table": [[f"`ast`, batch {batch}, without", *networks], *cells]}


def _measure(network: str, batch: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    return {change: _compare(network, change, batch, repeats) for change in CHANGES}


def _compare(network: str, change: str, batch: int, repeats: int) -> dict[str, list[float]]:
    """Both processes start anew, side by side: one that lives long is no fair partner."""
    with ExitStack() as stack:
        servers = step_speed.start(network, "ast", batch, (step_process.OURS, change), stack)
        for server in servers.values():
            if isinstance(server, UserError):
                raise server
        whole, without = servers.values()
        if change not in (MEMORY, PIECES) and whole.facts["program"] == without.facts["program"]:
            return {}
        pairs = [(whole.seconds(), without.seconds()) for _ in range(repeats + 1)][1:]
    as_it_is, less = (list(times) for times in zip(*pairs, strict=True))
    row = {"as it is": as_it_is, "without": less}
    print(network, change, _cell(row), flush=True)
    return row


def _cell(row: dict[str, list[float]]) -> str:
    if not row:
        return "–"
    as_it_is, less = (statistics.median(row[name]) for name in ("as it is", "without"))
    return f"{less:.2f} s in place of {as_it_is:.2f} s (× {less / as_it_is:.2f})"
