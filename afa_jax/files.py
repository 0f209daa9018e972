"""Files that are whole whenever they are there, and the folder for what is made once."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Holds the lock file `path`, whose folder is made if it is not there; a process that dies gives it free.

    Raises:
      BlockingIOError: another process holds it and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is whole whenever it is there."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def cache_folder() -> Path:
    """Where downloads and what is trained once are kept: `$AFA_JAX_CACHE`, or `afa_jax` in the user's cache folder."""
    standard = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afa_jax"
    return Path(os.environ.get("AFA_JAX_CACHE") or standard).expanduser()
