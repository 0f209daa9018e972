"""Checkpoints of one stage, written by Orbax beside the training, each sealed with the checksums of its files.

Orbax commits a checkpoint by renaming it, so a killed run leaves whole ones only. It does not notice a flipped bit in
an array, though: the seal, which is part of what is committed, does.
"""

import json
import logging
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from afa_jax import hosts
from afa_jax.errors import UserError, disk_fault
from afa_jax.training import preemption
from afa_jax.training.step import TrainState

_SEAL = "seal.json"
_STATE, _JOURNAL = "state", "journal"
# Orbax tells of every phase of every save, and of a fault before it raises it; a run's own lines would drown.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class Checkpoints:
    """The newest `keep` states of a stage under `folder`, which all hosts see; what cannot be read there is removed.

    Args:
      tell: is given one sentence for each checkpoint that cannot be used.
    """

    def __init__(self, folder: Path, keep: int, tell: Callable[[str], None]):
        self._folder = folder.absolute()
        self._newest = hosts.agreed(lambda: _newest_whole(self._folder, tell))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        with self._on_disk():
            self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, state: TrainState, records: Sequence[Mapping[str, Any]] = ()) -> None:
        """Keeps `state` under its step, and with it the journal up to there.

        When this returns the state may change; it is on disk when the next save begins, or `close` returns.

        Raises:
          UserError: this one or the one before cannot be written.
        """
        with self._on_disk():
            self._manager.wait_until_finished()
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(self._folder).free
        if needed > free:  # Orbax would say so with page upon page
            raise self._refusal(f"it takes {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free")
        with self._on_disk():
            items = {_STATE: ocp.args.StandardSave(state), _JOURNAL: ocp.args.JsonSave({"records": [*records]})}
            self._manager.save(int(state.step), args=ocp.args.Composite(**items))

    def restore(self, like: TrainState) -> tuple[TrainState, list[dict[str, Any]]] | None:
        """The newest state that was there at the beginning, and the journal up to it; or None.

        Args:
          like: a state whose arrays have the shapes, types and devices that the restored ones shall have; the devices
            may be others, and more or fewer, than those that saved it.
        """
        if self._newest is None:
            return None
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        items = {_STATE: ocp.args.StandardRestore(template), _JOURNAL: ocp.args.JsonRestore()}
        found = self._manager.restore(self._newest, args=ocp.args.Composite(**items))
        return found[_STATE], found[_JOURNAL]["records"]

    def close(self) -> None:
        """Waits until all is on disk, SIGTERM or not.

        Raises:
          UserError: the last one cannot be written.
        """
        with preemption.deferred(), self._on_disk():
            self._manager.close()

    def _seal(self) -> None:
        """Called by Orbax when all files of a checkpoint are there, before it is renamed."""
        if hosts.first():
            for folder in self._folder.glob("*.orbax-checkpoint-tmp*"):
                (folder / _SEAL).write_text(json.dumps(_checksums(folder)))

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if (fault := disk_fault(error)) is None:
                raise
            raise self._refusal(fault) from error

    def _refusal(self, fault: str) -> UserError:
        return UserError(
            f"A checkpoint cannot be written to {self._folder} ({fault}): mend that, and start the same command again; "
            "it goes on from the one before."
        )


def read_last(folder: Path, like: TrainState) -> TrainState:
    """The newest state of a stage, on this host's first device, for one who looks on: nothing is written or removed.

    Args:
      like: has the shapes and types; it may be what `jax.eval_shape` gives.

    Raises:
      UserError: there is none, or it is damaged.
    """
    steps = [int(f.name) for f in folder.iterdir() if f.name.isdigit()] if folder.is_dir() else []
    fault = _fault(folder / str(max(steps))) if steps else "not there"
    if fault:
        raise UserError(f"The last checkpoint in {folder} is {fault}: bring it back, or run that run again elsewhere.")
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
    wanted = ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(template)})
    options = ocp.CheckpointManagerOptions(read_only=True)
    with closing(ocp.CheckpointManager(folder.absolute(), options=options)) as manager:
        return manager.restore(max(steps), args=wanted)[_STATE]


def _newest_whole(folder: Path, tell: Callable[[str], None]) -> int | None:
    """The step of the newest checkpoint that can be read; newer ones are told and removed."""
    steps = [int(f.name) for f in folder.iterdir() if f.name.isdigit()] if folder.is_dir() else []
    for step in sorted(steps, reverse=True):
        checkpoint = folder / str(step)
        fault = _fault(checkpoint)
        if fault is None:
            return step
        tell(f"The checkpoint {checkpoint} is {fault}; it is removed; the run goes on from the one before, if any.")
        shutil.rmtree(checkpoint)
    return None


def _checksums(folder: Path) -> dict[str, int]:
    # What lies beside them tells when they were saved, is written last, and is not needed to restore.
    files = sorted(f for item in (_STATE, _JOURNAL) for f in (folder / item).rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): zlib.crc32(f.read_bytes()) for f in files}


def _fault(folder: Path) -> str | None:
    try:
        expected = json.loads((folder / _SEAL).read_text())
    except (OSError, ValueError):
        return "half-written"
    return None if _checksums(folder) == expected else "damaged"
