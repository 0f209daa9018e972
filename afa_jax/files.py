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


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives another name to write to; it becomes `path` when all is written, and is removed when that fails."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is whole whenever it is there."""
    with whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def user_path(text: str | Path) -> Path:
    """A path as a person writes it; `~` of a user who does not exist stays as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def cache_folder() -> Path:
    """Where downloads and what is trained once are kept: `$AFA_JAX_CACHE`, or `afa_jax` in the user's cache folder."""
    users = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return user_path(os.environ.get("AFA_JAX_CACHE") or Path(users) / "afa_jax")
