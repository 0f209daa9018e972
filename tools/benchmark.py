"""Measures speed, always against something in the same run; writes the figures with device, versions and date.

    python tools/benchmark.py delta --network resnet50     # DELTA's channel weights against one whole pass a filter

`delta` leaves out some filters of each tap both ways, on one batch at the network's own size, and works out the time of
all of them: what is done once (up to the tap) is told apart from what each filter costs by measuring two numbers of
them. Writes docs/results/delta_weights_<network>.json and prints a table.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from afa_jax.files import write_json
from afa_jax.models import zoo
from afa_jax.provenance import device, versions
from afa_jax.training.prepare import channels_together
from afa_jax.transfer.channel_weights import loss_increases

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """The median of `repeats` calls after one that compiles."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def delta(network: str, batch: int, filters: int, repeats: int) -> dict[str, Any]:
    """Seconds a filter both ways, by tap, and the ratio over all filters of all taps."""
    spec, module = zoo.NETWORKS[network], zoo.create(network, 100)
    variables = zoo.initialise(module, jax.random.key(0), spec.image_size)
    images = jax.random.normal(jax.random.key(1), (batch, spec.image_size, spec.image_size, 3))
    labels = jnp.arange(batch) % 100
    shapes = zoo.layer_shapes(module, spec.image_size)

    # The arrays are arguments: what is computed from constants would be computed when it is compiled.
    def loss(tap: str, variables: Any, images: Array, mask: Array) -> Array:
        logits = zoo.masked(module, variables, images, {tap: mask})
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def leave_out(tap: str, together: int, variables: Any, images: Array, which: Array) -> Array:
        return loss_increases(partial(loss, tap, variables, images), which, shapes[tap][-1], together)

    first = spec.taps[4][0]
    definition = jax.jit(partial(loss, first))
    # A pass costs the same whichever filter is left out.
    mask = jnp.ones(shapes[first][-1]).at[0].set(0)
    whole_pass = seconds(partial(definition, variables, images, mask), repeats)
    rows = []
    for tap in spec.taps[4]:
        channels = shapes[tap][-1]
        together = channels_together(batch, shapes[tap])
        few = min(channels // 2, max(filters, 2 * together))
        run = jax.jit(partial(leave_out, tap, together))
        half, full = (seconds(partial(run, variables, images, jnp.arange(n)), repeats) for n in (few, 2 * few))
        each = (full - half) / few
        once = max(0.0, half - few * each)
        rows.append({"tap": tap, "filters": channels, "together": together, "once": once, "each": each})
        print(
            f"{tap:<24} {channels:>5} filters  {each:.4f} s each + {once:.2f} s once; a whole pass {whole_pass:.3f} s"
        )
    count = sum(row["filters"] for row in rows)
    ours = sum(row["once"] + row["filters"] * row["each"] for row in rows)
    return {
        "network": network,
        "batch": batch,
        "whole_pass_seconds": whole_pass,
        "taps": rows,
        "definition_hours_a_batch": count * whole_pass / 3600,
        "ours_hours_a_batch": ours / 3600,
        "ratio": count * whole_pass / ours,
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["delta"])
    parser.add_argument("--network", choices=zoo.NETWORKS, default="resnet50")
    parser.add_argument("--batch", type=int, default=32, help="images; the released code takes 32")
    parser.add_argument("--filters", type=int, default=4, help="left out at least, of each tap")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(argv)
    result = delta(options.network, options.batch, options.filters, options.repeats)
    result |= {"device": device(), "versions": versions(), "finished": datetime.now(UTC).date().isoformat()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / f"delta_weights_{options.network}.json", result)
    ours, theirs = result["ours_hours_a_batch"], result["definition_hours_a_batch"]
    print(f"all filters of a batch: {ours:.2f} h against {theirs:.2f} h, a ratio of {result['ratio']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
