"""Where the time of a training step goes, for `tools/benchmark.py profile`."""

import gzip
import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import step_speed

from afa_jax import memory
from afa_jax.training.parallel import Devices

_INSTRUCTION = re.compile(r'\s*(?:ROOT )?%?([\w.\-]+) = (?:.*op_name="([^"]*)")?')
_LEAST = 0.01  # of the step, below which a kind of operation is counted among the others


def profile(network: str, method: str, batch: int) -> dict[str, Any]:
    """Seconds of one traced step by kind of operation, as XLA names it, with the operation that takes most of it.

    On a CPU convolutions and matrix products run beside the thread that is traced: they are what is left of the step.
    """
    memory.keep_freed()
    w = step_speed.work(network, method, batch)
    program: Any = step_speed.lower(w).compile()
    state = w.state
    with TemporaryDirectory() as folder:
        for _ in range(2):  # the first one is not what a run repeats
            state, metrics = program(state, w.frozen, Devices().spread(w.batch))
            jax.block_until_ready((state, metrics))
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            begun = time.perf_counter()
            jax.block_until_ready(program(state, w.frozen, Devices().spread(w.batch)))
            whole = time.perf_counter() - begun
        (file,) = Path(folder).rglob("perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    rows = _rows(events, dict(_INSTRUCTION.findall(program.as_text())), whole)
    about = {"network": network, "method": method, "batch": batch, "seconds": whole, "rows": rows}
    return {**about, "table": [[f"{network}, `{method}`, batch {batch}", "s", "share", "mostly"], *map(_cells, rows)]}


def _rows(events: list[dict[str, Any]], origins: Mapping[str, str], whole: float) -> list[dict[str, Any]]:
    """Of each kind of operation but convolutions and products, the largest first; then what is left.

    Args:
      origins: the operation of the program's source that each of XLA's comes from.
    """
    seconds: Counter[str] = Counter()
    for event in (event for event in events if event.get("ph") == "X"):
        name = event.get("args", {}).get("hlo_op", event["name"])  # on a GPU an event bears its kernel's name
        if name in origins:
            seconds[name] += event["dur"] / 1e6
    kinds: dict[str, Counter[str]] = {}
    for name, each in seconds.items():
        kind = re.sub(r"[.\d]+$", "", name)
        if not re.match(r"conv|dot|cublas|cudnn|custom-call|gemm", kind):
            kinds.setdefault(kind, Counter())[origins[name]] += each
    rows = [
        {"kind": f"`{kind}`", "seconds": of.total(), "share": of.total() / whole, "mostly": of.most_common(1)[0][0]}
        for kind, of in sorted(kinds.items(), key=lambda item: -item[1].total())
    ]
    shown = [row for row in rows if row["share"] >= _LEAST]
    others = sum(row["seconds"] for row in rows[len(shown) :])
    rest = whole - others - sum(row["seconds"] for row in shown)
    return [
        {"kind": "convolutions and products", "seconds": rest, "share": rest / whole, "mostly": ""},
        *shown,
        {"kind": "others", "seconds": others, "share": others / whole, "mostly": ""},
    ]


def _cells(row: Mapping[str, Any]) -> list[str]:
    mostly = re.sub(r"^jit\(step\)/", "", row["mostly"])
    return [row["kind"], f"{row['seconds']:.2f}", f"{100 * row['share']:.0f} %", f"`{mostly}`" if mostly else "–"]
