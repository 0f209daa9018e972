"""The training step against PyTorch's and against the machine, for `tools/benchmark.py step`.

Run by itself it is one of the processes that are compared: it tells what is known of the step, and then does what each
line that it is sent names, `step` or `evaluate`.

    python tools/step_speed.py resnet50 ast 16 afa_jax 4 cpu
"""

import importlib.util
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from hashlib import sha256
from importlib.metadata import version
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import limits
import numpy as np
from flax.core import FrozenDict

from afa_jax import compilation, memory
from afa_jax.data.augment import Preprocess
from afa_jax.data.prefetch import prefetch
from afa_jax.errors import UserError
from afa_jax.evaluation.logits import logits_of
from afa_jax.models import zoo
from afa_jax.plan import anatomy
from afa_jax.training.objective import Task
from afa_jax.training.optimizer import Sgd
from afa_jax.training.parallel import Devices
from afa_jax.training.step import TrainState, init_state, make_step
from afa_jax.transfer.method import Frozen
from afa_jax.transfer.methods import METHODS
from afa_jax.transfer.recipes import Stage

CLASSES, SOURCE_CLASSES = 100, 1000
# Small enough that random networks, whose features are large, stay finite.
SETTINGS = {"alpha": 1e-9, "beta": 0.01, "weight_decay": 0.0}
LEARNING_RATE = 1e-4
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared by the processes that are compared
OURS = "afa_jax"
OURS_BFLOAT16 = "afa_jax bfloat16"
DTYPES = {OURS: "float32", OURS_BFLOAT16: "bfloat16"}
"""What ours computes in; parameters, statistics and losses are float32 in both."""
EAGER = "eager"
"""PyTorch's step in the form of the released code: contiguous, in float32, not compiled."""
RELEASED = "as released"
"""PyTorch's eager step in a process that gives freed memory back to the system, as it does by itself."""
TORCH_VARIANTS = (EAGER, "channels-last", "bfloat16 autocast", "compiled", "compiled bfloat16")
"""PyTorch's; all but the first channels-last, by autocast where they say bfloat16."""
TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "inception_v3", "mobilenet_v2")
"""Networks that both libraries have."""
Calls = Mapping[str, Callable[[], None]]
"""`step` and `evaluate`, each on the same batch every time, and `wait` for what a device still does."""


# Functions, because JAX's first look at the devices must come after `memory.keep_freed`.
def ours_here() -> tuple[str, ...]:
    """Of our variants those that are worth their time: a CPU computes in bfloat16 by way of float32."""
    return (OURS,) if compilation.on_cpu() else (OURS, OURS_BFLOAT16)


def steps_a_call() -> int:
    """As in a run, the host prepares the next step while a device still works."""
    return 1 if compilation.on_cpu() else 10


class Work(NamedTuple):
    """All that one step needs."""

    task: Task
    state: TrainState
    frozen: Frozen
    batch: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def work(network: str, method: str, batch: int, modules: int = 4, dtype: Any = jnp.float32) -> Work:
    """A stage of `method` at the network's own size, on random images and weights, on every device."""
    spec = zoo.NETWORKS[network]
    target, teacher = (zoo.create(network, classes, dtype) for classes in (CLASSES, SOURCE_CLASSES))
    taps = spec.taps[modules]
    every = zoo.layer_shapes(target, spec.image_size)
    shapes = {tap: every[tap] for tap in taps}
    record = METHODS[method]
    settings = FrozenDict({**record.settings, **SETTINGS, "convention": "released"})
    stage = Stage(record, 9000, LEARNING_RATE, 6000, 0.1, settings, taps)
    task = Task(target, teacher, anatomy(spec), stage, Preprocess(spec.image_size, True, spec.mean, spec.std), Sgd())
    constants = {"channels": {tap: jnp.full(shape[-1], 1 / shape[-1]) for tap, shape in shapes.items()}}
    frozen = Frozen(_variables(teacher, spec.image_size, 1), constants if method == "delta" else {})
    random = np.random.default_rng(0)
    examples = {
        "image": random.integers(0, 256, (batch, spec.resize, spec.resize, 3), np.uint8),
        "label": random.integers(0, CLASSES, batch, np.int32),
        "index": np.arange(batch, dtype=np.int32),
    }
    variables = _variables(target, spec.image_size, 0)
    state = init_state(task, variables, frozen, jnp.asarray(examples["image"][:1]), jax.random.PRNGKey(0))
    devices = Devices()
    return Work(task, devices.replicate(state), devices.replicate(frozen), examples, shapes)


def _variables(module: nn.Module, image_size: int, seed: int) -> dict[str, Any]:
    """Random kernels, which the host makes because a compiler takes long over a network's; the rest as at the start."""
    random = np.random.default_rng(seed)
    images = jnp.zeros((1, image_size, image_size, 3))

    def fill(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        if (name := path[-1].key) == "kernel":
            return random.normal(0, (2 / math.prod(leaf.shape[:-1])) ** 0.5, leaf.shape).astype(leaf.dtype)
        return np.full(leaf.shape, float(name in ("scale", "var")), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(module.init, jax.random.key(0), images))


def trace(w: Work) -> Any:
    """The step as it goes to the compiler; the state's memory is reused."""
    everywhere = jax.tree.leaves(w.state)[0].sharding
    step = compilation.jit(make_step(w.task), donate_argnums=0, out_shardings=everywhere)
    return step.trace(w.state, w.frozen, Devices().spread(w.batch))


def ours(w: Work) -> tuple[Calls, dict[str, Any]]:
    """A compiled step and an evaluation on a batch that comes from the host, and what is known of the program."""
    begun = time.perf_counter()
    traced = trace(w)
    lowered = traced.lower()
    done_tracing = time.perf_counter()
    program: Any = lowered.compile()
    compiled = time.perf_counter()
    state = [w.state]
    batches = prefetch(lambda step: w.batch, itertools.count(), Devices().spread)

    def step() -> None:
        state[0], _ = program(state[0], w.frozen, next(batches))

    def wait() -> None:
        jax.block_until_ready(state[0])

    def evaluate() -> None:
        variables = {"params": state[0].params["target"], "batch_stats": state[0].batch_stats}
        logits_of(w.task.target, variables, w.task.preprocess, w.batch["image"], len(w.batch["image"]))

    step()
    wait()
    done = time.perf_counter()
    evaluate()
    memory_analysis = program.memory_analysis()
    return {"step": step, "evaluate": evaluate, "wait": wait}, {
        "trace": done_tracing - begun,
        "compile": compiled - done_tracing,
        "first_step": done - compiled,
        "program": sha256(f"{lowered.as_text()}{compilation.compiler_options()}".encode()).hexdigest(),
        "flops": limits.products(traced.jaxpr.jaxpr),
        "bytes": program.cost_analysis()["bytes accessed"],
        "memory_bytes": memory_analysis.temp_size_in_bytes + memory_analysis.argument_size_in_bytes,
    }


def theirs(network: str, method: str, w: Work, variant: str, device: str) -> Calls:
    """The same in PyTorch, which is given the cropped and normalised images."""
    import torch_step

    images = np.moveaxis(np.array(w.task.preprocess.test(jnp.asarray(w.batch["image"]))), -1, 1)
    settings = {**SETTINGS, "learning_rate": LEARNING_RATE}
    head = zoo.NETWORKS[network].head
    calls = torch_step.make_step(network, method, variant, w.shapes, head, images, w.batch["label"], settings, device)
    for call in calls.values():
        call()
    return calls


def serve(network: str, method: str, batch: int, variant: str, modules: int, device: str) -> None:
    """Tells what is known of the step, then does what every line names, as often as it says, and tells the seconds.

    Args:
      variant: of PyTorch's step, or of ours.
      device: PyTorch's, `cpu` or `cuda`.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    w = work(network, method, batch, modules, jnp.dtype(DTYPES.get(variant, DTYPES[OURS])))
    calls, facts = ours(w) if variant in DTYPES else (theirs(network, method, w, variant, device), {})
    print(json.dumps(facts), file=answers)
    for line in sys.stdin:
        call, count = line.split()
        begun = time.perf_counter()
        for _ in range(int(count)):
            calls[call]()
        calls["wait"]()
        print((time.perf_counter() - begun) / int(count), file=answers)


class Server:
    """A step in a process of its own, so that neither library has the other's memory and threads in its way.

    All but two keep the memory that they have freed, as `python -m afa_jax.main` does.

    Args:
      variant: one of ours, ours without a change (`changes.CHANGES`, of which one is that memory), one of PyTorch's,
        or `RELEASED`.

    Raises:
      UserError: it does not run.
    """

    def __init__(
        self, network: str, method: str, batch: int, variant: str, modules: int = 4, **environment: str
    ) -> None:
        command = [sys.executable, __file__, network, method, str(batch), variant, str(modules)]
        command.append("cpu" if compilation.on_cpu() else "cuda")
        if variant in TORCH_VARIANTS or variant == RELEASED:
            environment |= {"JAX_PLATFORMS": "cpu"}  # a GPU's memory is PyTorch's then
        self._errors = TemporaryFile("w+")  # noqa: SIM115  (open as long as the process)
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
        )
        try:
            self.facts = json.loads(self._answer())
        except BaseException:
            self.close()
            raise

    def seconds(self, call: str = "step") -> float:
        """Of one `step`, or of one `evaluate`."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it has ended, which its answer tells
            self._process.stdin.write(f"{call} {steps_a_call() if call == 'step' else 1}\n")
        return float(self._answer())

    def close(self) -> None:
        if not self._errors.closed:
            self._process.kill()
            self._process.communicate()
            self._errors.close()

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise UserError((self._errors.read().strip().splitlines() or ["it ended"])[-1][:200])
        return line


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


def compare(network: str, method: str, batch: int, repeats: int, servers: Mapping[str, Any]) -> dict[str, Any]:
    """Images a second of every variant, one call of each in turn.

    A variant whose first call takes three times as long as the fastest one's is not measured again.

    Args:
      servers: as `start` makes them.

    Raises:
      UserError: none of ours runs.
    """
    failed = {name: each for name, each in servers.items() if isinstance(each, UserError)}
    times: dict[str, dict[str, list[float]]] = {"step": {}, "evaluate": {}}

    def ask(name: str, call: str) -> None:
        try:
            if name not in failed:
                times[call].setdefault(name, []).append(servers[name].seconds(call))
        except UserError as error:
            failed[name] = error

    for name in servers:
        ask(name, "step")
    fastest = min((first for (first,) in times["step"].values()), default=0.0)
    quick = [name for name, (first,) in times["step"].items() if name in (*DTYPES, EAGER) or first < 3 * fastest]
    for call, count in (("step", repeats - 1), ("evaluate", repeats)):
        for _ in range(count):
            for name in quick:
                ask(name, call)
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
        "batch": batch,
        "image_size": zoo.NETWORKS[network].image_size,
        "seconds": times["step"],
        "seconds_of_evaluation": times["evaluate"],
        "images_per_second": {name: batch / seconds for name, seconds in medians.items()},
        "failed": {name: str(error) for name, error in failed.items()},
        "ratio": ratio(medians),
        "ratio_of_fastest": ratio({name: min(each) for name, each in times["step"].items()}),
        "ratio_to_eager": medians[EAGER] / medians[best] if EAGER in medians else None,
        "evaluated_per_second": batch / min(evaluated[name] for name in evaluated.keys() & DTYPES.keys()),
        "ratio_of_evaluation": ratio(evaluated),
        "best": best,
        "dtype": DTYPES[best],
        **{key: servers[best].facts[key] for key in ("flops", "bytes", "memory_bytes")},
    }


def _best(seconds: Mapping[str, float], *, ours: bool) -> str | None:
    """The fastest of our variants, or of PyTorch's."""
    return min((name for name in seconds if (name in DTYPES) == ours), key=seconds.__getitem__, default=None)


def ratio(seconds: Mapping[str, float]) -> float | None:
    """How many times PyTorch's best our best is; None where PyTorch is not there."""
    ours, theirs = (_best(seconds, ours=mine) for mine in (True, False))
    return seconds[theirs] / seconds[ours] if ours and theirs else None


def has_torch() -> bool:
    """Whether PyTorch and torchvision are installed; neither is imported."""
    return all(map(importlib.util.find_spec, ("torch", "torchvision")))


def variants() -> tuple[str, ...]:
    """What can be compared here: ours, and PyTorch's if it is installed."""
    return (*ours_here(), *(TORCH_VARIANTS if has_torch() else ()))


def starts(network: str, method: str, batch: int, variant: str) -> dict[str, Any]:
    """Two starts: with an empty compilation cache, then with what the first has left."""
    with TemporaryDirectory() as cache:
        extra = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        made = []
        for _ in range(2):
            server = Server(network, method, batch, variant, 4, **extra)
            server.close()
            made.append({key: server.facts[key] for key in ("trace", "compile", "first_step")})
    return {"cold": made[0], "cached": made[1]}


def step(
    rows: Iterable[tuple[str, str]],
    batch: int,
    repeats: int,
    variants: Sequence[str],
    compile_times: bool = False,
    earlier: Sequence[dict[str, Any]] = (),
    keep: Callable[[dict[str, Any]], object] = lambda result: None,
) -> dict[str, Any]:
    """All rows, and the table that is shown.

    Args:
      rows: methods and networks.
      variants: ours and PyTorch's, at least one of ours.
      earlier: rows that were measured before; one that is measured anew takes its place.
      keep: is given what there is after each row.

    Raises:
      UserError: no row could be measured.
    """
    measured = False
    result: dict[str, Any] = {"peaks": limits.peaks(), "rows": list(earlier)}
    if set(variants) & set(TORCH_VARIANTS):
        result["torch"] = version("torch")
    for method, network in rows:
        try:
            with ExitStack() as stack:
                row = compare(network, method, batch, repeats, start(network, method, batch, variants, stack))
            row["starts"] = starts(network, method, batch, row["best"]) if compile_times else None
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


if __name__ == "__main__":
    import changes

    _, chosen, kind, images, wanted, count, device = sys.argv
    if wanted not in (changes.MEMORY, RELEASED):
        memory.keep_freed()
    changes.undo(wanted)
    variant = OURS if wanted in changes.CHANGES else EAGER if wanted == RELEASED else wanted
    serve(chosen, kind, int(images), variant, int(count), device)
