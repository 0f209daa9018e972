"""A finished run's folder, opened: what it was asked to do and what it says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from afa_jax.config import settle
from afa_jax.errors import UserError
from afa_jax.models.zoo import NETWORKS
from afa_jax.settings import Experiment
from afa_jax.training.workdir import CONFIG, SUMMARY, finished


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
      summary: as in `summary.json`.
    """

    folder: Path
    experiment: Experiment
    summary: Mapping[str, Any]


def reopen(folder: Path) -> Finished:
    """The finished run in a folder; nothing but its summary is read.

    Raises:
      UserError: no finished run is there, or one of another version or of a network that is not in the zoo.
    """
    summary = finished(folder)
    if summary is None:
        raise UserError(_why_not(folder))
    settings = summary.get("experiment")
    network = settings.get("network") if isinstance(settings, dict) else None
    if isinstance(network, str) and network not in NETWORKS:
        raise UserError(
            f"The run in {folder} is of the network {network!r}, which is not in the zoo: register it first, with "
            "afa_jax.register in Python."
        )
    try:
        return Finished(folder, settle(ConfigDict(settings)), summary)
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"The run in {folder} is of another version of afa_jax: {error}") from error


def _why_not(folder: Path) -> str:
    if not folder.is_dir():
        return f"There is no folder {folder}."
    if (folder / CONFIG).is_file() and not (folder / SUMMARY).exists():
        return f"There is no finished run in {folder}: the run there has not ended; its command goes on with it."
    inside = next((file.parent for file in sorted(folder.glob(f"*/*/{SUMMARY}"))), None)
    hint = f" It holds several runs; name one of them, such as {inside}." if inside else ""
    return f"There is no finished run in {folder}: its {SUMMARY} is not there or damaged.{hint}"
