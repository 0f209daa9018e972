"""How the cost of a step and of reading grows, for `tools/benchmark.py growth`."""

import os
import statistics
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import step_process

from afa_jax.data.batches import train_batch
from afa_jax.data.dataset import Split
from afa_jax.errors import UserError

BATCHES = (8, 16, 32, 64, 128, 256)
MODULES = (4, 8, 12)
IMAGES = (10**3, 10**4, 10**5, 10**6)
DEVICES = (1, 2, 4, 8)
_READ = 64  # images a batch, where reading is measured


def growth(network: str, batch: int, repeats: int) -> dict[str, Any]:
    """The step by batch, by number of attentive modules and by devices, and reading by the number of images.

    Args:
      batch: where the batch is not what grows.
    """
    rows = [
        *(_step("batch", size, network, size, repeats) for size in BATCHES),
        *(_step("attentive modules", count, network, batch, repeats, modules=count) for count in MODULES),
        *(_step("virtual devices", count, network, batch, repeats, XLA_FLAGS=_devices(count)) for count in DEVICES),
        *(_reading(count, repeats) for count in IMAGES),
    ]
    head = ["what grows", "to", "images/s", "the program's memory", "before the first batch"]
    return {"network": network, "batch": batch, "rows": rows, "table": [head, *map(_cells, rows)]}


def _devices(count: int) -> str:
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"


def _step(what: str, size: int, network: str, batch: int, repeats: int, **options: Any) -> dict[str, Any]:
    known = {"what": what, "size": size}
    try:
        with closing(step_process.Server(network, "ast", batch, step_process.OURS, **options)) as server:
            rate = batch / statistics.median(server.seconds() for _ in range(repeats))
            return _told({**known, "images_per_second": rate, "memory": server.facts["memory_bytes"]})
    except UserError as error:  # most likely it is too large
        return _told({**known, "fault": str(error)})


def _reading(count: int, repeats: int) -> dict[str, Any]:
    """Random batches of a cache of so many images, in a file whose pixels take no room on the disk."""
    with TemporaryDirectory() as folder:
        shape = (count, 256, 256, 3)
        images = np.lib.format.open_memmap(Path(folder) / "images.npy", "w+", np.uint8, shape)
        split = Split(images, np.zeros(count, np.int32))
        begun = time.perf_counter()
        train_batch(split, _READ, 0, 0)
        first = time.perf_counter() - begun
        seconds = []
        for step in range(1, 1 + 4 * repeats):
            begun = time.perf_counter()
            train_batch(split, _READ, step, 0)
            seconds.append(time.perf_counter() - begun)
    rate = _READ / statistics.median(seconds)
    return _told({"what": "images in the cache", "size": count, "images_per_second": rate, "first": first})


def _told(row: dict[str, Any]) -> dict[str, Any]:
    print(" ".join(_cells(row)), flush=True)
    return row


def _cells(row: dict[str, Any]) -> list[str]:
    if "fault" in row:
        return [row["what"], f"{row['size']:,}", "does not run", "–", "–"]
    memory = f"{row['memory'] / 1e9:.2f} GB" if "memory" in row else "–"
    first = f"{row['first']:.2f} s" if "first" in row else "–"
    return [row["what"], f"{row['size']:,}", f"{row['images_per_second']:,.1f}", memory, first]
