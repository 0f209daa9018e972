"""The training step against PyTorch's and against the machine, for `tools/benchmark.py step`."""

import statistics
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import limits
from step_process import DTYPES, EAGER, TORCH_VARIANTS, Server

from afa_jax import compilation
from afa_jax.errors import UserError
from afa_jax.models import zoo


def start(network: str, method: str, batch: int, variants: Sequence[str], stack: ExitStack) -> dict[str, Any]:
    """By variant its process, or the error that it ended with.

    On a CPU they compile side by side. On a GPU a compiler measures what is fastest, which another would disturb.
    """

    def one(variant: str) -> Server | UserError:
        try:
            return stack.enter_context(closing(Server(network, method, batch, variant)))
        except UserError as error:
            return error

    with ThreadPoolExecutor(len(variants) if compilation.on_cpu() else 1) as pool:
        return dict(zip(variants, pool.map(one, variants), strict=True))


class Measure(NamedTuple):
    """How a row is measured.

    Args:
      batch: images.
      variants: ours and PyTorch's, at least one of ours.
      repeats: calls of each process.
      processes: of each variant, one set after the other: how fast one comes out differs.
      compile_times: whether ours is started twice more for them.
    """

    batch: int
    variants: Sequence[str]
    repeats: int = 3
    processes: int = 1
    compile_times: bool = False

    def sets(self, network: str, method: str) -> Generator[dict[str, Any], None, None]:
        """What `start` makes, and ends before the next."""
        for _ in range(self.processes):
            with ExitStack() as stack:
                yield start(network, method, self.batch, self.variants, stack)


def compare(network: str, method: str, how: Measure, sets: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Images a second of every variant, one call of each in turn; a first step of each process is not counted.

    A variant whose step then takes three times as long as the fastest one's is not measured again in this set.

    Args:
      sets: by variant a process, as `start` makes them.

    Raises:
      UserError: none of ours runs.
    """
    failed: dict[str, UserError] = {}
    times: dict[str, dict[str, list[float]]] = {"step": {}, "evaluate": {}}
    facts: dict[str, Mapping[str, Any]] = {}

    def ask(servers: Mapping[str, Any], names: Iterable[str], call: str) -> dict[str, float]:
        seconds = {}
        for name in names:
            try:
                if name not in failed:
                    seconds[name] = servers[name].seconds(call)
            except UserError as error:
                failed[name] = error
        return seconds

    def count(call: str, seconds: Mapping[str, float]) -> None:
        for name, each in seconds.items():
            times[call].setdefault(name, []).append(each)

    for servers in sets:
        failed = {name: each for name, each in servers.items() if isinstance(each, UserError)} | failed
        facts |= {name: servers[name].facts for name in servers.keys() - failed.keys()}
        ask(servers, servers, "step")
        counted = ask(servers, servers, "step")
        count("step", counted)
        fastest = min(counted.values(), default=0.0)
        quick = [name for name, each in counted.items() if name in (*DTYPES, EAGER) or each < 3 * fastest]
        for call, times_more in (("step", how.repeats - 1), ("evaluate", how.repeats)):
            for _ in range(times_more):
                count(call, ask(servers, quick, call))
    times = {call: {name: each for name, each in of.items() if name not in failed} for call, of in times.items()}
    if not times["step"].keys() & DTYPES.keys():
        raise next(error for name, error in failed.items() if name in DTYPES)
    medians, evaluated = (
        {name: statistics.median(each) for name, each in times[call].items()} for call in ("step", "evaluate")
    )
    best = _best(medians, ours=True)
    assert best
    return {
        "network": network,
        "method": method,
        "batch": how.batch,
        "processes": how.processes,
        "image_size": zoo.NETWORKS[network].image_size,
        "seconds": times["step"],
        "seconds_of_evaluation": times["evaluate"],
        "images_per_second": {name: how.batch / seconds for name, seconds in medians.items()},
        "failed": {name: str(error) for name, error in failed.items()},
        "ratio": ratio(medians),
        "ratio_of_fastest": ratio({name: min(each) for name, each in times["step"].items()}),
        "ratio_to_eager": medians[EAGER] / medians[best] if EAGER in medians else None,
        "evaluated_per_second": how.batch / min(evaluated[name] for name in evaluated.keys() & DTYPES.keys()),
        "ratio_of_evaluation": ratio(evaluated),
        "best": best,
        "dtype": DTYPES[best],
        **{key: facts[best][key] for key in ("flops", "bytes", "memory_bytes")},
    }


def _best(seconds: Mapping[str, float], *, ours: bool) -> str | None:
    """The fastest of our variants, or of PyTorch's."""
    return min((name for name in seconds if (name in DTYPES) == ours), key=seconds.__getitem__, default=None)


def ratio(seconds: Mapping[str, float]) -> float | None:
    """How many times PyTorch's best our best is; None where PyTorch is not there."""
    ours, theirs = (_best(seconds, ours=mine) for mine in (True, False))
    return seconds[theirs] / seconds[ours] if ours and theirs else None


def starts(network: str, method: str, batch: int, variant: str) -> dict[str, Any]:
    """Two starts: with an empty compilation cache, then with what the first has left."""
    with TemporaryDirectory() as cache:
        keeping = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        made = []
        for _ in range(2):
            server = Server(network, method, batch, variant, 4, **keeping)
            server.close()
            made.append({key: server.facts[key] for key in ("trace", "compile", "first_step")})
    return {"cold": made[0], "cached": made[1]}


def step(
    rows: Iterable[tuple[str, str]],
    how: Measure,
    earlier: Sequence[dict[str, Any]] = (),
    keep: Callable[[dict[str, Any]], object] = lambda result: None,
) -> dict[str, Any]:
    """All rows, and the table that is shown.

    Args:
      rows: methods and networks.
      earlier: rows that were measured before; one that is measured anew takes its place.
      keep: is given what there is after each row.

    Raises:
      UserError: no row could be measured.
    """
    measured = False
    result: dict[str, Any] = {"peaks": limits.peaks(), "rows": list(earlier)}
    if set(how.variants) & set(TORCH_VARIANTS):
        result["torch"] = version("torch")
    for method, network in rows:
        try:
            with closing(how.sets(network, method)) as sets:
                row = compare(network, method, how, sets)
            row["starts"] = starts(network, method, how.batch, row["best"]) if how.compile_times else None
        except UserError as error:
            print(f"{network} {method} does not run: {error}", file=sys.stderr)
            continue
        row["share_of_limit"] = limits.share_of_limit(row, result["peaks"])
        others = [each for each in result["rows"] if (each["method"], each["network"]) != (method, network)]
        result["rows"], measured = [*others, row], True
        print(_line(row), flush=True)
        keep({**result, "table": table(result["rows"])})
    if not measured:
        raise UserError("no step could be measured.")
    return {**result, "table": table(result["rows"])}


_HEAD = [
    "network, method",
    "batch",
    "afa_jax",
    "PyTorch's best",
    "ratio",
    "of the fastest steps",
    "to PyTorch's eager",
    "evaluated (ratio)",
    "share of the limit",
    "memory",
    "compile, cached",
]


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Images a second by the median step, with the variants that were the best.

    Where others use the machine, the ratio of the fastest steps is the one to go by.
    """
    return [_HEAD, *map(_cells, rows)]


def _cells(row: Mapping[str, Any]) -> list[str]:
    rates = row["images_per_second"]
    theirs = _best({name: 1 / rate for name, rate in rates.items()}, ours=False)
    made = row.get("starts")
    return [
        f"{row['network']}, `{row['method']}`",
        str(row["batch"]),
        f"{rates[row['best']]:.2f} ({row['dtype']})",
        f"{rates[theirs]:.2f} ({theirs})" if theirs else "–",
        *(f"{row[key]:.2f}" if row[key] else "–" for key in ("ratio", "ratio_of_fastest", "ratio_to_eager")),
        f"{row['evaluated_per_second']:.1f}"
        + (f" ({row['ratio_of_evaluation']:.2f})" if row["ratio_of_evaluation"] else ""),
        f"{100 * row['share_of_limit']:.0f} %",
        f"{row['memory_bytes'] / 1e9:.1f} GB",
        f"{made['cold']['compile']:.0f} s, {made['cached']['compile']:.1f} s" if made else "–",
    ]


def _line(row: Mapping[str, Any]) -> str:
    rates = ", ".join(f"{name} {rate:.2f}" for name, rate in row["images_per_second"].items())
    missing = "".join(f"; {name} does not run: {why}" for name, why in row["failed"].items())
    return f"{row['network']} {row['method']}: images/s {rates}{missing}"
