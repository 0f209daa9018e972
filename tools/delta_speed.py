"""DELTA's channel weights against one whole pass a filter, for `tools/benchmark.py delta`."""

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import step_process
from jax import Array

from afa_jax import compilation, memory
from afa_jax.models import zoo
from afa_jax.models.masking import channel_readers, masked
from afa_jax.training.prepare import channels_together
from afa_jax.transfer.channel_weights import loss_increases

# Whole passes in PyTorch, eager, contiguous and in float32; the released code makes one for each filter.
_PYTORCHS = {"pytorch": step_process.EAGER, "released": step_process.RELEASED}
RATIOS = {"whole_pass": "ratio", "pytorch": "ratio_to_pytorch", "released": "ratio_to_released"}
"""By the passes that it is set against, how many times as fast all filters are."""


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """The median of `repeats` calls after one that compiles."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def delta(network: str, batch: int, share: int, repeats: int) -> dict[str, Any]:
    """Seconds a filter, by tap: here, by a whole pass of the same network, and by one of PyTorch's.

    Args:
      batch: images; the released code takes 32 at once.
      share: of the filters of each tap, one in so many is left out.
    """
    memory.keep_freed()
    spec, module = zoo.NETWORKS[network], zoo.create(network, 100)
    variables = zoo.initialise(module, jax.random.key(0), spec.image_size)
    images = jax.random.normal(jax.random.key(1), (batch, spec.image_size, spec.image_size, 3))
    labels = jnp.arange(batch) % 100
    shapes = zoo.layer_shapes(module, spec.image_size)

    # The arrays are arguments: what is computed from constants would be computed when it is compiled.
    def loss(tap: str, readers: frozenset[str], variables: Any, images: Array, mask: Array) -> Array:
        logits = masked(module, variables, images, {tap: mask}, readers=readers, channel=jnp.argmin(mask))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def leave_out(
        tap: str, readers: frozenset[str], together: int, variables: Any, images: Array, which: Array
    ) -> Array:
        return loss_increases(partial(loss, tap, readers, variables, images), which, shapes[tap][-1], together)

    first = spec.taps[4][0]
    definition = compilation.jit(partial(loss, first, frozenset()))
    # A pass costs the same whichever filter is left out.
    mask = jnp.ones(shapes[first][-1]).at[0].set(0)
    rows = []
    with ExitStack() as stack:
        there = network in step_process.TORCHVISION and step_process.has_torch()
        pytorchs = {
            name: stack.enter_context(closing(step_process.Server(network, "delta", batch, variant)))
            for name, variant in (_PYTORCHS if there else {}).items()
        }
        for tap in spec.taps[4]:
            channels = shapes[tap][-1]
            together = channels_together(batch, shapes[tap])
            few = max(channels // share // together, 1) * together
            readers = channel_readers(module, variables, spec.image_size, lambda mask, tap=tap: {tap: mask}, channels)
            run = compilation.jit(partial(leave_out, tap, readers, together))
            half, full = (seconds(partial(run, variables, images, jnp.arange(n)), repeats) for n in (few, 2 * few))
            each = (full - half) / few
            row = {
                "tap": tap,
                "filters": channels,
                "once": max(0.0, half - few * each),
                "each": each,
                "whole_pass": seconds(partial(definition, variables, images, mask), 4 * repeats),
            }
            for name, server in pytorchs.items():
                row[name] = statistics.median(server.seconds("evaluate") for _ in range(4 * repeats))
            rows.append(row)
            print(", ".join(f"{head} {cell}" for head, cell in zip(_head([row]), _cells(row), strict=True)), flush=True)
    return {"network": network, "batch": batch, "seconds": rows, **_summed(rows, batch), "table": table(rows)}


def _summed(rows: list[dict[str, Any]], images: int) -> dict[str, Any]:
    """Of all filters; a ratio is of each tap against the passes that were measured beside it."""
    filters = sum(row["filters"] for row in rows)
    ours = [row["once"] + row["filters"] * row["each"] for row in rows]
    rate = images * filters / sum(ours)
    sums: dict[str, Any] = {"ours_hours_a_batch": sum(ours) / 3600, "images_times_filters_per_second": rate}
    for name, ratio in RATIOS.items():
        if all(name in row for row in rows):
            sums[f"{name}_hours_a_batch"] = sum(row["filters"] * row[name] for row in rows) / 3600
            sums[ratio] = filters / sum(mine / row[name] for mine, row in zip(ours, rows, strict=True))
    return sums


_COLUMNS = {
    "filters": "filters",
    "once": "once, s",
    "each": "each, s",
    "whole_pass": "a whole pass, s",
    "pytorch": "PyTorch's, s",
    "released": "as released, s",
}


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line a tap, and the ratios."""
    summed = _summed(rows, 1)
    ratios = [f"× {summed[RATIOS[name]]:.1f}" if RATIOS.get(name) in summed else "" for name in _shown(rows)]
    return [_head(rows), *map(_cells, rows), ["all filters", *ratios]]


def _shown(rows: list[dict[str, Any]]) -> list[str]:
    return [name for name in _COLUMNS if name in rows[0]]


def _head(rows: list[dict[str, Any]]) -> list[str]:
    return ["tap", *(_COLUMNS[name] for name in _shown(rows))]


def _cells(row: dict[str, Any]) -> list[str]:
    return [f"`{row['tap']}`", *(f"{row[name]:.4g}" for name in _shown([row]))]
