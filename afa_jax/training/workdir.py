"""A run's folder: whose it is, and that only one process works in it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np

from afa_jax import hosts
from afa_jax.errors import UserError
from afa_jax.files import locked, write_json
from afa_jax.measures import measure
from afa_jax.types import Variables

CONFIG, ORIGIN, SUMMARY, MODEL = "config.json", "origin.json", "summary.json", "model"


@contextmanager
def claim(workdir: Path, config: Mapping[str, Any], *, wait: bool = False) -> Iterator[None]:
    """Makes the folder, or finds that it holds this same run, and keeps other runs out.

    `sign` makes it the run's; until then nothing is in it. All hosts come here; the first holds the lock.

    Args:
      config: the run's settings.
      wait: until another process has finished there, in place of refusing.

    Raises:
      UserError: the folder holds another run, cannot be written, another process works in it, or not all hosts see
        it.
    """
    with ExitStack() as stack:

        def take() -> None:
            try:
                stack.enter_context(locked(workdir / ".lock", wait=wait))
            except BlockingIOError as error:
                raise UserError(
                    f"Another process is at work in {workdir}: wait for it, or choose another with --workdir."
                ) from error
            except OSError as error:
                raise UserError(
                    f"The workdir {workdir} cannot be written ({error.strerror}): choose another with --workdir."
                ) from error
            _check_owner(workdir, config)

        hosts.agreed(take)
        hosts.check_shared(workdir)
        yield


def sign(workdir: Path, config: Mapping[str, Any], source: str, data: str) -> None:
    """Keeps the run's settings as `config.json`: from now on the folder is this run's.

    Args:
      source: the fingerprint of the source network.
      data: that of the images and labels; empty where they cannot change.

    Raises:
      UserError: the run has begun with another source network, or with other images, or another host has others.
    """
    now = {"source network": source, "images": data}
    hosts.check_alike(**now)
    hosts.agreed(lambda: _sign(workdir, config, now))


def _sign(workdir: Path, config: Mapping[str, Any], now: Mapping[str, str]) -> None:
    write_json(workdir / CONFIG, config)
    path = workdir / ORIGIN
    try:
        begun = dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else now
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: remove {workdir} and start again.") from error
    for what, digest in now.items():
        if begun.get(what) != digest:
            raise UserError(
                f"The {what} {'are' if what.endswith('s') else 'is'} not what the run in {workdir} began with: bring "
                "that back, or choose another folder with --workdir."
            )
    write_json(path, now)


def fingerprint(variables: Variables | None) -> str:
    """The sha256 of all numbers of a network; of nothing where there is none."""
    digest = sha256()
    for leaf in jax.tree.leaves(variables):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _check_owner(workdir: Path, config: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(config))
    path = workdir / CONFIG
    if not path.exists():
        ours = (".lock", hosts.SIGN)
        others = [child.name for child in workdir.iterdir() if child.name not in ours and child.suffix != ".partial"]
        if others:
            raise UserError(
                f"The workdir {workdir} holds other files ({', '.join(sorted(others)[:3])}) and no run: "
                "choose an empty or new folder with --workdir."
            )
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: remove {workdir} or choose another folder with --workdir.") from error
    if differing := differences(found, wanted):
        raise UserError(
            f"The workdir {workdir} holds another run ({'; '.join(differing[:4])}): choose another with --workdir."
        )


def differences(found: Any, wanted: Any, prefix: str = "") -> list[str]:
    """What differs between two settings, each in words; `prefix` is that of their dotted names.

    A setting that `found` does not have is newer than it, and does nothing while it is zero or empty.
    """
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return [] if found == wanted else [f"{prefix.rstrip('.')} is {found!r} there and {wanted!r} here"]
    keys = sorted(found.keys() | {key for key in wanted if key in found or wanted[key]})
    return [d for key in keys for d in differences(found.get(key), wanted.get(key), f"{prefix}{key}.")]


def finished(workdir: Path) -> dict[str, Any] | None:
    """The summary of a finished run; None if there is none or it is damaged, for the checkpoints can make it again."""
    try:
        summary = json.loads((workdir / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) and measure(summary) else None
