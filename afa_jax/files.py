"""Files that are whole whenever they are there, and the folder for what is made once."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is whole whenever it is there."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def cache_folder() -> Path:
    """Where downloads and what is trained once are kept: `$AFA_JAX_CACHE`, or `afa_jax` in the user's cache folder."""
    standard = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afa_jax"
    return Path(os.environ.get("AFA_JAX_CACHE") or standard).expanduser()
