"""A step on every device of every host: one program over a batch that is spread out, or one mapped over the devices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from afa_jax import compilation, trees
from afa_jax.batch_axis import WHOLE, BatchAxis
from afa_jax.errors import UserError
from afa_jax.training.objective import Task, unweighted
from afa_jax.training.step import Metrics, Step, TrainState, make_step
from afa_jax.transfer.method import Frozen
from afa_jax.types import Batch, PyTree

_AXIS = "batch"
STOP = "stop"
"""Under this name a batch may say, once for each device of a host, whether the host has been asked to stop (1, else 0).
The metrics then have the mean, so that all hosts learn of it at the same step."""


WRAPPERS = ("jit", "pmap")


@dataclass(frozen=True)
class Devices:
    """All devices of all hosts, each with a copy of the state and an equal part of the batch.

    Attributes:
      wrapper: `jit`: one program, whose batch is sharded over a mesh, and the compiler puts in what must be exchanged;
        `pmap`: the program of one device, mapped, which exchanges by name.
    """

    wrapper: str = "jit"

    @property
    def part(self) -> tuple[int, int]:
        """(k, n): this host reads the k-th of n parts of a batch."""
        return jax.process_index(), jax.process_count()

    def check(self, name: str, batch_size: int, accumulate: int) -> None:
        """Refuses a batch that cannot be shared out.

        Raises:
          UserError: it has no equal parts for the devices, as often as it is cut for accumulation.
        """
        count = jax.device_count()
        shares = count * accumulate
        if batch_size % shares:
            below = batch_size - batch_size % shares
            near = f"{below} or {below + shares}" if below else f"{shares}"
            cut = f" in {accumulate} parts (config.accumulate)" if accumulate > 1 else ""
            raise UserError(
                f"config.{name} is {batch_size}, which {count} device{'s' * (count > 1)} cannot share equally{cut}: "
                f"set it to {near}."
            )

    def replicate(self, tree: PyTree) -> PyTree:
        """A copy of host arrays, or of one device's, on every device."""
        everywhere = NamedSharding(_mesh(), PartitionSpec())
        if jax.process_count() == 1:
            return jax.device_put(tree, everywhere)
        # `device_put` would first compare the arrays of all hosts; that they began alike has been made sure of.
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(everywhere, np.asarray(x), x.shape), tree)

    def local(self, tree: PyTree) -> PyTree:
        """Of arrays that every device has a copy of, the copy on this host's first device."""
        return jax.tree.map(lambda x: x.addressable_data(0), tree)

    def whole(self, tree: PyTree) -> PyTree:
        """Of arrays that are spread over the devices, all parts, on this host's first device."""
        return self.local(_gather()(tree))

    def spread(self, batch: Mapping[str, Any]) -> Batch:
        """This host's part of a batch, on its devices, as a step wants it.

        Args:
          batch: arrays whose first axis this host's devices can share equally.
        """
        if self.wrapper == "pmap":
            own = NamedSharding(Mesh(np.array(jax.local_devices()), (_AXIS,)), PartitionSpec(_AXIS))
            count = jax.local_device_count()
            return jax.tree.map(lambda x: jax.device_put(x.reshape(count, -1, *x.shape[1:]), own), dict(batch))
        shared = NamedSharding(_mesh(), PartitionSpec(_AXIS))
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(shared, x), dict(batch))

    def compile(self, task: Task, tell: Callable[[str], None] | None = None) -> Step:
        """`make_step` on all devices; the state's memory is reused.

        Seeds share one compilation, and so do all alphas and betas: they are arguments of it.

        Args:
          tell: is given a sentence before the first step: what a step takes, as compiled for these devices.
        """
        settings = task.stage.settings
        program = _compile(unweighted(task), self.wrapper)
        untold = [tell] if tell else []

        def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
            arguments = settings["alpha"], settings["beta"], state, frozen, batch
            while untold:
                untold.pop()(_describe(program.lower(*arguments), task, state, batch["label"].size, self.wrapper))
            state, metrics = program(*arguments)
            return self._everywhere(state), metrics

        return step

    def _everywhere(self, tree: PyTree) -> PyTree:
        """What a step puts out, as arrays of all devices, which evaluation and checkpoints want; nothing is moved.

        On several hosts a mapped program gives each host arrays of its own.
        """
        if self.wrapper != "pmap" or jax.process_count() == 1:
            return tree
        everywhere = NamedSharding(_mesh(), PartitionSpec())

        def join(x: Array) -> Array:
            copies = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, everywhere, copies)

        return jax.tree.map(join, tree)


def _describe(lowered: Any, task: Task, state: TrainState, images: int, wrapper: str) -> str:
    cost, memory = lowered.cost_analysis(), lowered.compile().memory_analysis()
    devices, count = jax.device_count(), {name: trees.size(tree) for name, tree in state.params.items()}
    sentence = f"{count['target']:,} parameters"
    if count["attention"]:
        sentence += f" and {count['attention']:,} that are needed for training only"
    if cost:
        # Of a mapped program it is what one device does; of a loop, which accumulation is, one round.
        times = task.accumulate * (jax.local_device_count() if wrapper == "pmap" else 1)
        sentence += f"; a step takes {_short(times * cost['flops'] / images)}FLOP an image"
    if memory is not None:
        total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        sentence += f"; its program takes {_short(total - memory.alias_size_in_bytes)}B of memory"
    hosts = f" of {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    return f"{sentence} on each of {devices} devices{hosts}." if devices > 1 else f"{sentence}."


def _short(number: float) -> str:
    """Three digits and the prefix of a unit."""
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:,.3g} T"


@lru_cache(maxsize=1)
def _mesh() -> Mesh:
    # A host's devices lie side by side, so that its part of a batch is one piece.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (_AXIS,))


@lru_cache(maxsize=1)
def _gather() -> Any:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(_mesh(), PartitionSpec()))


@lru_cache(maxsize=32)
def _compile(task: Task, wrapper: str) -> Any:
    axis = BatchAxis(_AXIS) if wrapper == "pmap" else WHOLE

    def step(alpha: Array, beta: Array, state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        examples = {key: value for key, value in batch.items() if key != STOP}
        state, metrics = make_step(task, alpha, beta, axis)(state, frozen, examples)
        return state, {**metrics, STOP: axis.mean(batch[STOP].mean())} if STOP in batch else metrics

    if wrapper == "pmap":
        mapped: Callable[..., Any] = jax.pmap(
            step, _AXIS, in_axes=(None, None, None, None, 0), out_axes=None, donate_argnums=2
        )
        return mapped
    everywhere = NamedSharding(_mesh(), PartitionSpec())
    return compilation.jit(step, donate_argnums=2, out_shardings=everywhere)
