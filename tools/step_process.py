"""A training step in a process of its own, ours or PyTorch's, that others can have made as often as they want.

Run by itself it is that process: it tells what is known of the step, and then does what each line that it is sent
names, `step` or `evaluate`.

    python tools/step_process.py resnet50 ast 16 afa_jax 4 cpu
"""

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from tempfile import TemporaryFile
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
    form = EAGER if variant == RELEASED else variant
    calls = torch_step.make_step(network, method, form, w.shapes, head, images, w.batch["label"], settings, device)
    for call in calls.values():
        call()
    if variant != RELEASED:
        memory.set_aside_fragments()  # of this process's compilers, as ours does
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


def has_torch() -> bool:
    """Whether PyTorch and torchvision are installed; neither is imported."""
    return all(map(importlib.util.find_spec, ("torch", "torchvision")))


def variants() -> tuple[str, ...]:
    """What can be compared here: ours, and PyTorch's if it is installed."""
    return (*ours_here(), *(TORCH_VARIANTS if has_torch() else ()))


if __name__ == "__main__":
    import changes

    _, chosen, kind, images, wanted, count, device = sys.argv
    if wanted not in (changes.MEMORY, RELEASED):
        memory.keep_freed()
    changes.undo(wanted)
    variant = OURS if wanted in changes.CHANGES else wanted
    serve(chosen, kind, int(images), variant, int(count), device)
