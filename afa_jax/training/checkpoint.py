"""Checkpoints of one stage, written by Orbax, each sealed with the checksums of its files.

Orbax commits a checkpoint by renaming it, so a killed run leaves whole ones only. It does not notice a flipped bit in
an array, though: the seal does, and a checkpoint without its seal was not finished.
"""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from afa_jax.training.step import TrainState

_SEAL = "seal.json"
# Orbax tells of every phase of every save at INFO and WARNING; a run's own lines would drown.
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The newest `keep` states of a stage under `folder`.

    Args:
      tell: is given one sentence for each checkpoint that cannot be used.
    """

    def __init__(self, folder: Path, keep: int, tell: Callable[[str], None]):
        self._folder, self._tell = folder.absolute(), tell
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep), enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, state: TrainState) -> None:
        """Keeps `state` under its step; when this returns it is on disk."""
        step = int(state.step)
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))
        folder = self._folder / str(step)
        partial = folder / f"{_SEAL}.partial"
        partial.write_text(json.dumps(_checksums(folder)))
        os.replace(partial, folder / _SEAL)

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest readable state, or None; what cannot be read is told and removed.

        Args:
          like: a state whose arrays have the shapes and types that the checkpoint must have.
        """
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        for step in sorted(self._manager.all_steps(), reverse=True):
            folder = self._folder / str(step)
            fault = _fault(folder)
            if fault is None:
                args = ocp.args.Composite(state=ocp.args.StandardRestore(template))
                return self._manager.restore(step, args=args)["state"]
            self._tell(
                f"The checkpoint {folder} is {fault}; it is removed; the run goes on from the one before, if any."
            )
            shutil.rmtree(folder)
            self._manager.reload()
        return None

    def close(self) -> None:
        self._manager.close()


def _checksums(folder: Path) -> dict[str, int]:
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith(_SEAL))
    return {str(f.relative_to(folder)): zlib.crc32(f.read_bytes()) for f in files}


def _fault(folder: Path) -> str | None:
    try:
        expected = json.loads((folder / _SEAL).read_text())
    except (OSError, ValueError):
        return "half-written"
    return None if _checksums(folder) == expected else "damaged"
