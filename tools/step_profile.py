"""Where the time of a training step goes, for `tools/benchmark.py profile`."""

import gzip
import json
import math
import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import step_process

from afa_jax import memory
from afa_jax.compilation import on_cpu
from afa_jax.training.parallel import Devices

_INSTRUCTION = re.compile(r'\s*(?:ROOT )?%?([\w.\-]+) = (?:.*op_name="([^"]*)")?')
_LEAST = 0.01  # of the step, below which a kind of operation is counted among the others


def profile(network: str, method: str, batch: int, dtype: str = "float32") -> dict[str, Any]:
    """Seconds of a traced step by kind of operation, as XLA names it, with the operation that takes most of it.

    On a CPU convolutions and matrix products run beside the thread that is traced: they are what is left of the step.
    On a GPU they are what a library computes, and what is left is the time in which it waits.
    """
    memory.keep_freed()
    w = step_process.work(network, method, batch, dtype=jnp.dtype(dtype))
    program: Any = step_process.trace(w).lower().compile()
    state = w.state

    count = step_process.steps_a_call()

    def steps() -> float:
        nonlocal state
        begun = time.perf_counter()
        for _ in range(count):
            state, _metrics = program(state, w.frozen, Devices().spread(w.batch))
        jax.block_until_ready(state)
        return (time.perf_counter() - begun) / count

    untraced = [steps() for _ in range(3)][-1]  # the first ones are not what a run repeats
    with TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            traced = steps()
        (file,) = Path(folder).rglob("perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    origins = dict(_INSTRUCTION.findall(program.as_text()))
    # A trace of a GPU delays what the host asks of it.
    whole = traced if on_cpu() else untraced
    rows = (_of_cpu if on_cpu() else _of_gpu)(events, origins, whole * count)
    about = {"network": network, "method": method, "batch": batch, "dtype": dtype, "seconds": whole}
    for row in rows:
        row["seconds"] /= count
    head = [f"{network}, `{method}`, batch {batch}, {dtype}", "ms", "share", "mostly"]
    return {**about, "rows": rows, "table": [head, *map(_cells, rows)]}


def _of_cpu(events: list[dict[str, Any]], origins: Mapping[str, str], whole: float) -> list[dict[str, Any]]:
    """Of each kind of operation but convolutions and products, the largest first; then what is left.

    Args:
      origins: the operation of the program's source that each of XLA's comes from.
    """
    seconds: Counter[str] = Counter()
    for event in (event for event in events if event.get("ph") == "X" and event["name"] in origins):
        if not re.match(r"conv(?!ert)|dot|custom-call", event["name"]):
            seconds[event["name"]] += event["dur"] / 1e6
    shown = _shown(seconds, origins, whole)
    rest = whole - sum(row["seconds"] for row in shown)
    return [_row("convolutions and products", rest, whole), *shown]


def _of_gpu(events: list[dict[str, Any]], origins: Mapping[str, str], whole: float) -> list[dict[str, Any]]:
    """What libraries compute, then each kind of XLA's own operations, copies, and when the device waits."""
    named = [event for event in events if event.get("name") == "process_name"]
    devices = {event["pid"] for event in named if "GPU" in event["args"].get("name", "")}
    kernels = {re.sub(r"\W", "_", name): name for name in origins}
    seconds: Counter[str] = Counter()
    libraries, copies = 0.0, 0.0
    busy: list[tuple[float, float]] = []
    for event in (event for event in events if event.get("ph") == "X" and event["pid"] in devices):
        name, took = kernels.get(event["name"]), event["dur"] / 1e6
        if re.match(r"(?i)mem(cpy|set)", event["name"]):
            copies += took
        elif name is None or name.startswith("gemm"):
            libraries += took
        else:
            seconds[name] += took
        busy.append((event["ts"] / 1e6, event["ts"] / 1e6 + took))
    shown = [_row("convolutions and products", libraries, whole), *_shown(seconds, origins, whole)]
    return [*shown, _row("copies", copies, whole), _row("the device waits", whole - _union(busy), whole)]


def _union(spans: list[tuple[float, float]]) -> float:
    """How long at least one of them lasts: copies run beside what is computed."""
    length, end = 0.0, -math.inf
    for begin, until in sorted(spans):
        length += max(0.0, until - max(begin, end))
        end = max(end, until)
    return length


def _shown(seconds: Counter[str], origins: Mapping[str, str], whole: float) -> list[dict[str, Any]]:
    """A row for each kind, the largest first, and one for all that are small."""
    kinds: dict[str, Counter[str]] = {}
    for name, each in seconds.items():
        kinds.setdefault(re.sub(r"[.\d]+$", "", name), Counter())[origins[name]] += each
    largest = sorted(kinds.items(), key=lambda item: -item[1].total())
    shown = [_row(f"`{kind}`", of.total(), whole, of.most_common(1)[0][0]) for kind, of in largest]
    others = sum(row["seconds"] for row in shown if row["share"] < _LEAST)
    return [*(row for row in shown if row["share"] >= _LEAST), _row("others", others, whole)]


def _row(kind: str, seconds: float, whole: float, mostly: str = "") -> dict[str, Any]:
    return {"kind": kind, "seconds": seconds, "share": seconds / whole, "mostly": mostly}


def _cells(row: Mapping[str, Any]) -> list[str]:
    mostly = re.sub(r"^jit\(step\)/", "", row["mostly"])
    return [
        row["kind"],
        f"{1000 * row['seconds']:,.1f}",
        f"{100 * row['share']:.0f} %",
        f"`{mostly}`" if mostly else "–",
    ]
