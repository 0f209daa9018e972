"""What `tools/analyse.py` leaves in a run's folder, read and checked."""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from afa_jax.errors import UserError
from afa_jax.report.runs import Run

FOLDER = "analysis"
QUANTILES = 101


@dataclass(frozen=True)
class Found:
    """An analysis of a run."""

    run: Run
    content: Any


@dataclass(frozen=True)
class ActivationMaps:
    """Maps of chosen channels over chosen photos, each normalised to [0, 1] (DELTA §4.4).

    Attributes:
      photos: uint8 [P, S, S, 3].
      names: P file names.
      layer: its path in the network.
      channels: K numbers.
      source, target: [P, K, h, w], of the source network and of the trained one.
    """

    photos: np.ndarray
    names: tuple[str, ...]
    layer: str
    channels: tuple[int, ...]
    source: np.ndarray
    target: np.ndarray

    def alike(self, other: "ActivationMaps") -> bool:
        """Whether both show the same photos, layer and channels, so that they can stand side by side."""
        same = (self.names, self.layer, self.channels) == (other.names, other.layer, other.channels)
        return same and np.array_equal(self.photos, other.photos)


@dataclass(frozen=True)
class Overlay:
    """Where a tap's attention looks.

    Attributes:
      file: an RGBA picture of the photo's size.
      peak: the largest weight, times their number.
      top: channels and their weights, the largest first; empty for spatial attention.
    """

    stage: str
    tap: str
    kind: str
    file: Path
    peak: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Photo:
    """A photo as the network sees it, what the network says of it, and the attention on it."""

    file: Path
    name: str
    true: str
    predicted: str
    probability: float
    overlays: tuple[Overlay, ...]


def generalisation(file: Path) -> dict[str, float]:
    """Cross-entropy of the final network: `train`, `test` and their difference `gap`."""
    found = _json(file)
    return {
        "train": _number(found["train"]["loss"]),
        "test": _number(found["test"]["loss"]),
        "gap": _number(found["gap"]),
    }


def filter_distances(file: Path) -> dict[str, np.ndarray]:
    """The 0, 1, …, 100 % quantiles of the filters' distances from the start, by stage of the network."""
    stages = {name: np.array(stage["quantiles"], float) for name, stage in _json(file)["stages"].items()}
    if not stages or any(q.shape != (QUANTILES,) or not np.isfinite(q).all() for q in stages.values()):
        raise ValueError(f"not {QUANTILES} quantiles a stage")
    return stages


def attention(file: Path) -> tuple[Photo, ...]:
    """The photos with their overlays; every picture must be there."""
    found = _json(file)
    overlays: dict[int, list[Overlay]] = {}
    for one in found["overlays"]:
        top = tuple((int(channel), _number(weight)) for channel, weight in one.get("top", ()))
        made = Overlay(one["stage"], one["tap"], one["kind"], _beside(file, one["file"]), _number(one["peak"]), top)
        overlays.setdefault(one["photo"], []).append(made)
    return tuple(
        Photo(
            _beside(file, photo["file"]),
            photo["name"],
            photo["class"],
            photo["predicted"],
            _number(photo["probability"]),
            tuple(overlays.get(i, ())),
        )
        for i, photo in enumerate(found["photos"])
    )


def activation_maps(file: Path) -> ActivationMaps:
    with np.load(file) as found:
        maps = ActivationMaps(
            found["photos"],
            tuple(map(str, found["names"])),
            str(found["layer"]),
            tuple(map(int, found["channels"])),
            found["source"],
            found["target"],
        )
    count = (len(maps.photos), len(maps.channels))
    if maps.photos.ndim != 4 or len(maps.names) != count[0] or not all(count):
        raise ValueError("not photos and channels")
    if maps.source.ndim != 4 or maps.source.shape != maps.target.shape or maps.source.shape[:2] != count:
        raise ValueError("not a map a photo and channel")
    return maps


def parts(file: Path) -> dict[str, Any]:
    """Mean normalised activation at the parts: `target` and `source`, each with `sum` and `parts`, a mean by name."""
    found = _json(file)
    return {
        "layer": str(found["layer"]),
        **{
            which: {
                "sum": _number(found[which]["sum"]),
                "parts": {name: _number(part["mean"]) for name, part in found[which]["parts"].items()},
            }
            for which in ("target", "source")
        },
    }


def dissection(file: Path) -> dict[str, Any]:
    """Detectors by category: `target` and `source`, each a count by name."""
    found = _json(file)
    counts = {
        which: {category: int(count) for category, count in found[which]["detectors"].items()}
        for which in ("target", "source")
    }
    return {"layer": str(found["layer"]), "threshold": _number(found["threshold"]), **counts}


READERS: Mapping[str, tuple[str, Callable[[Path], Any]]] = {
    "generalisation": ("generalisation.json", generalisation),
    "filter_distances": ("filter_distances.json", filter_distances),
    "attention": ("attention.json", attention),
    "activation_maps": ("activation_maps.npz", activation_maps),
    "parts": ("parts.json", parts),
    "dissection": ("dissection.json", dissection),
}


def found(runs: Sequence[Run], name: str) -> tuple[list[Found], list[str]]:
    """The analyses of this name that the runs have, and a sentence about each that is damaged."""
    file_name, read = READERS[name]
    made, problems = [], []
    for run in runs:
        file = run.folder / FOLDER / file_name
        if not file.exists():
            continue
        try:
            made.append(Found(run, read(file)))
        except UserError as error:
            problems.append(str(error))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, zipfile.BadZipFile):
            problems.append(f"{file} is damaged and left out: make it again with tools/analyse.py.")
    return made, problems


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _number(value: Any) -> float:
    if not np.isfinite(value):
        raise ValueError(f"{value} is no number")
    return float(value)


def _beside(file: Path, name: str) -> Path:
    """A picture that an analysis names, in its own folder and nowhere else.

    Raises:
      UserError: it is not there, or the name leads out of the folder.
    """
    path = file.parent / name
    if not path.resolve().is_relative_to(file.parent.resolve()) or not path.is_file():
        raise UserError(f"{file} names the picture {name}, which is not there: make it again with tools/analyse.py.")
    return path
