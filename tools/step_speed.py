"""The training step against PyTorch's and against the machine, for `tools/benchmark.py step`.

Run by itself it is one of the processes that are compared: it tells what is known of the step, and then does what each
line that it is sent names, `step` or `evaluate`.

    python tools/step_speed.py resnet50 ast 16 afa_jax 4
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
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from hashlib import sha256
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from afa_jax import compilation, memory
from afa_jax.data.augment import Preprocess
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
RELEASED = "as released"
"""PyTorch's eager step in a process that gives freed memory back to the system, as it does by itself."""
TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "inception_v3", "mobilenet_v2")
"""Networks that both libraries have."""
Calls = Mapping[str, Callable[[], None]]
"""`step` and `evaluate`, each on the same batch every time."""


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
    frozen = Frozen(zoo.initialise(teacher, jax.random.key(1), spec.image_size), constants if method == "delta" else {})
    random = np.random.default_rng(0)
    examples = {
        "image": random.integers(0, 256, (batch, spec.resize, spec.resize, 3), np.uint8),
        "label": random.integers(0, CLASSES, batch, np.int32),
        "index": np.arange(batch, dtype=np.int32),
    }
    variables = zoo.initialise(target, jax.random.key(0), spec.image_size)
    state = init_state(task, variables, frozen, jnp.asarray(examples["image"][:1]), jax.random.PRNGKey(0))
    devices = Devices()
    return Work(task, devices.replicate(state), devices.replicate(frozen), examples, shapes)


def lower(w: Work) -> Any:
    """The step as it goes to the compiler; the state's memory is reused."""
    everywhere = jax.tree.leaves(w.state)[0].sharding
    step = compilation.jit(make_step(w.task), donate_argnums=0, out_shardings=everywhere)
    return step.lower(w.state, w.frozen, Devices().spread(w.batch))


def ours(w: Work) -> tuple[Calls, dict[str, Any]]:
    """A compiled step and an evaluation on a batch that comes from the host, and what is known of the program."""
    begun = time.perf_counter()
    lowered = lower(w)
    traced = time.perf_counter()
    program: Any = lowered.compile()
    compiled = time.perf_counter()
    state = [w.state]

    def one() -> None:
        state[0], metrics = program(state[0], w.frozen, Devices().spread(w.batch))
        jax.block_until_ready((state[0], metrics))

    def evaluate() -> None:
        variables = {"params": state[0].params["target"], "batch_stats": state[0].batch_stats}
        logits_of(w.task.target, variables, w.task.preprocess, w.batch["image"], len(w.batch["image"]))

    one()
    done = time.perf_counter()
    evaluate()
    memory_analysis = program.memory_analysis()
    return {"step": one, "evaluate": evaluate}, {
        "trace": traced - begun,
        "compile": compiled - traced,
        "first_step": done - compiled,
        "program": sha256(f"{lowered.as_text()}{compilation.compiler_options()}".encode()).hexdigest(),
        "flops": lowered.cost_analysis()["flops"],
        "bytes": program.cost_analysis()["bytes accessed"],
        "memory_bytes": memory_analysis.temp_size_in_bytes + memory_analysis.argument_size_in_bytes,
    }


def theirs(network: str, method: str, w: Work, variant: str) -> Calls:
    """The same in PyTorch, which is given the cropped and normalised images."""
    import torch_step

    images = np.moveaxis(np.array(w.task.preprocess.test(jnp.asarray(w.batch["image"]))), -1, 1)
    settings = {**SETTINGS, "learning_rate": LEARNING_RATE}
    head = zoo.NETWORKS[network].head
    calls = torch_step.make_step(network, method, variant, w.shapes, head, images, w.batch["label"], settings)
    for call in calls.values():
        call()
    return calls


def serve(network: str, method: str, batch: int, variant: str | None, modules: int) -> None:
    """Tells what is known of the step, then does what every line that comes in names, and tells its seconds.

    Args:
      variant: of PyTorch's step; none for ours.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    w = work(network, method, batch, modules)
    calls, facts = (theirs(network, method, w, variant), {}) if variant else ours(w)
    print(json.dumps(facts), file=answers)
    for line in sys.stdin:
        begun = time.perf_counter()
        calls[line.strip()]()
        print(time.perf_counter() - begun, file=answers)


class Server:
    """A step in a process of its own, so that neither library has the other's memory and threads in its way.

    All but two keep the memory that they have freed, as `python -m afa_jax.main` does.

    Args:
      variant: ours, ours without a change (`changes.CHANGES`, of which one is that memory), one of PyTorch's, or
        `RELEASED`.

    Raises:
      UserError: it does not run.
    """

    def __init__(
        self, network: str, method: str, batch: int, variant: str, modules: int = 4, **environment: str
    ) -> None:
        command = [sys.executable, __file__, network, method, str(batch), variant, str(modules)]
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
            self._process.stdin.write(f"{call}\n")
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


def compare(network: str, method: str, batch: int, repeats: int, variants: Sequence[str]) -> dict[str, Any]:
    """Images a second of every variant, one step of each in turn.

    A variant whose first step takes three times as long as the fastest one's is not measured again.
    """
    running: dict[str, Server] = {}
    failed: dict[str, str] = {}
    times: dict[str, list[float]] = {}
    with ExitStack() as stack:
        for name in (OURS, *variants):
            try:
                running[name] = stack.enter_context(closing(Server(network, method, batch, name)))
                times[name] = [running[name].seconds()]
            except UserError as error:
                if name == OURS:
                    raise
                failed[name] = str(error)
        fastest = min(map(min, times.values()))
        quick = [name for name in times if name == OURS or times[name][0] < 3 * fastest]
        for _ in range(repeats - 1):
            for name in quick:
                times[name].append(running[name].seconds())
        looks: dict[str, list[float]] = {name: [] for name in quick}
        for _ in range(repeats):
            for name in quick:
                looks[name].append(running[name].seconds("evaluate"))
    medians = {name: statistics.median(each) for name, each in times.items()}
    evaluated = {name: statistics.median(each) for name, each in looks.items()}
    facts = running[OURS].facts
    return {
        "network": network,
        "method": method,
        "batch": batch,
        "image_size": zoo.NETWORKS[network].image_size,
        "seconds": times,
        "images_per_second": {name: batch / seconds for name, seconds in medians.items()},
        "failed": failed,
        "ratio": ratio(medians),
        "ratio_of_fastest": ratio({name: min(each) for name, each in times.items()}),
        "evaluated_per_second": batch / evaluated[OURS],
        "ratio_of_evaluation": ratio(evaluated),
        **{key: facts[key] for key in ("flops", "bytes", "memory_bytes")},
    }


def ratio(seconds: Mapping[str, float]) -> float | None:
    """How many times PyTorch's best our step is; None where PyTorch is not there."""
    others = [value for name, value in seconds.items() if name != OURS]
    return min(others) / seconds[OURS] if others else None


def has_torch() -> bool:
    """Whether PyTorch and torchvision are installed; neither is imported."""
    return all(map(importlib.util.find_spec, ("torch", "torchvision")))


def torch_variants() -> tuple[str, ...]:
    """PyTorch's, if it is installed."""
    if not has_torch():
        return ()
    import torch_step

    return torch_step.VARIANTS


def peaks(size: int = 2048, megabytes: int = 256, repeats: int = 5) -> dict[str, float]:
    """The device's best: float32 operations a second in a matrix product, bytes a second in a copy."""
    matrix, array = jnp.ones((size, size)), jnp.ones(megabytes << 18)
    # In place, because a step too reuses its memory: asking the system for it anew would be measured as well.
    product, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1, donate_argnums=0)
    fastest = [math.inf, math.inf]
    jax.block_until_ready(product(matrix))
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(product(matrix))
        middle = time.perf_counter()
        array = jax.block_until_ready(copy(array))
        fastest = [min(fastest[0], middle - begun), min(fastest[1], time.perf_counter() - middle)]
    return {"flops": 2 * size**3 / fastest[0], "bytes": 2 * array.nbytes / fastest[1]}


def share_of_limit(row: Mapping[str, Any], peak: Mapping[str, float]) -> float:
    """The least time that arithmetic or memory would take at the measured peaks, as a share of the step's."""
    least = max(row["flops"] / peak["flops"], row["bytes"] / peak["bytes"])
    return least * row["images_per_second"][OURS] / row["batch"]


def starts(network: str, method: str, batch: int) -> dict[str, Any]:
    """Two starts: with an empty compilation cache, then with what the first has left."""
    with TemporaryDirectory() as cache:
        extra = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        made = []
        for _ in range(2):
            server = Server(network, method, batch, OURS, 4, **extra)
            server.close()
            made.append({key: server.facts[key] for key in ("trace", "compile", "first_step")})
    return {"cold": made[0], "cached": made[1]}


def step(
    networks: Sequence[str],
    methods: Sequence[str],
    batch: int,
    repeats: int,
    variants: Sequence[str],
    compile_times: bool = False,
) -> dict[str, Any]:
    """All rows, and the table that is shown.

    Args:
      variants: of PyTorch's step, that are compared with.
    """
    peak = peaks()
    rows = []
    for network, method in itertools.product(networks, methods):
        try:
            row = compare(network, method, batch, repeats, variants)
            if compile_times:
                row["starts"] = starts(network, method, batch)
        except UserError as error:
            print(f"{network} {method} does not run: {error}", file=sys.stderr)
            continue
        row["share_of_limit"] = share_of_limit(row, peak)
        rows.append(row)
        print(_line(row), flush=True)
    result = {"peaks": peak, "rows": rows, "table": table(rows)}
    if variants:
        import torch_step

        result["torch"] = torch_step.torch.__version__
    return result


_HEAD = [
    "network, method",
    "batch",
    OURS,
    "PyTorch's best",
    "ratio",
    "of the fastest steps",
    "evaluated (ratio)",
    "share of the limit",
    "memory",
    "compile, cached",
]


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Images a second by the median step, with the variant that was PyTorch's best.

    Where others use the machine, the ratio of the fastest steps is the one to go by.
    """
    return [_HEAD, *map(_cells, rows)]


def _cells(row: Mapping[str, Any]) -> list[str]:
    rates = {name: rate for name, rate in row["images_per_second"].items() if name != OURS}
    best = max(rates, key=rates.__getitem__, default=None)
    made = row.get("starts")
    return [
        f"{row['network']}, `{row['method']}`",
        str(row["batch"]),
        f"{row['images_per_second'][OURS]:.2f}",
        f"{rates[best]:.2f} ({best})" if best else "–",
        *(f"{row[key]:.2f}" if row[key] else "–" for key in ("ratio", "ratio_of_fastest")),
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

    _, chosen, kind, images, wanted, count = sys.argv
    if wanted not in (changes.MEMORY, RELEASED):
        memory.keep_freed()
    changes.undo(wanted)
    variant = None if wanted in (OURS, *changes.CHANGES) else "eager" if wanted == RELEASED else wanted
    serve(chosen, kind, int(images), variant, int(count))
