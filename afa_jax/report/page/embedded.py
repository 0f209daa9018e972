"""What the page's script draws from: curves and attention, as JSON that is no larger than a page may be.

Curves are thinned: 500 points each where they are few; where they are many, all of them together have about
`CURVE_NUMBERS` numbers of each sort (means; single runs), but each `FEWEST_POINTS` at the least.
Attention is shown of one run a recipe, and of no more photos than `MOST_PHOTOS`; its pictures are made
small, some 10 kB each.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from afa_jax.report.analyses import Found, Photo
from afa_jax.report.curves import METRICS, SPLITS, Curve, boundaries, curve, grouped, together
from afa_jax.report.page.markup import data_uri
from afa_jax.report.runs import Run

MOST_POINTS, FEWEST_POINTS = 500, 24
CURVE_NUMBERS = 150_000
MOST_PHOTOS, MOST_ATTENTION_RUNS = 8, 12
SIDE = 256
"""Longest side in pixels of a photo on the page."""
OVERLAY_SIDE = 96
"""That of an overlay, which the browser stretches over the photo: attention has 7 to 56 positions a side."""
_DIGITS = 4


def task(run: Run) -> str:
    """Data set and network: what is never averaged over."""
    return f"{run.dataset} · {run.network}"


def curves(runs: Sequence[Run]) -> dict[str, Any]:
    """For each task its labels and the curves, means over seeds and single runs, by split and metric."""
    groups = grouped(runs, task)
    labelled = {name: grouped(group, lambda run: run.label) for name, group in groups.items()}
    known = {name for run in runs for record in run.records for name in record}
    metrics = {name: title for name, title in METRICS.items() if name in known}
    each = len(SPLITS) * len(metrics)
    mean_points = _points(each * 3 * sum(map(len, labelled.values())))
    run_points = _points(each * 2 * len(runs))
    return {
        "metrics": metrics,
        "splits": SPLITS,
        "tasks": [
            {
                "name": name,
                "labels": list(labels),
                "boundaries": [
                    sorted({step for run in seeds for step in boundaries(run)}) for seeds in labels.values()
                ],
                "means": _lines({(label, ""): seeds for label, seeds in labels.items()}, metrics, mean_points),
                "runs": _lines(_single(labels), metrics, run_points),
            }
            for name, labels in labelled.items()
        ],
    }


def _single(labels: Mapping[str, Sequence[Run]]) -> dict[tuple[str, str], list[Run]]:
    """Each run by its label and seed, runs that have both alike by their number."""
    found: dict[tuple[str, str], list[Run]] = {}
    for label, runs in labels.items():
        for run in runs:
            name, number = f"seed {run.seed}", 1
            while (label, name) in found:
                number += 1
                name = f"seed {run.seed} ({number})"
            found[label, name] = [run]
    return found


def _points(numbers_a_point: int) -> int:
    return max(FEWEST_POINTS, min(MOST_POINTS, CURVE_NUMBERS // max(1, numbers_a_point)))


def _lines(
    groups: Mapping[tuple[str, str], Sequence[Run]], metrics: Iterable[str], most: int
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    labels = list(dict.fromkeys(label for label, _ in groups))

    def line(label: str, name: str, found: Curve) -> dict[str, Any]:
        found = found.thinned(most)
        one = {"label": labels.index(label), "name": name, "n": len(found.values), "x": found.steps.tolist()}
        one["y"] = _rounded(found.mean)
        return one | ({"d": _rounded(found.deviation)} if len(found.values) > 1 else {})

    return {
        split: {
            metric: [
                line(label, name, found)
                for (label, name), runs in groups.items()
                if len((found := _of(runs, split, metric)).steps)
            ]
            for metric in metrics
        }
        for split in SPLITS
    }


def _of(runs: Sequence[Run], split: str, metric: str) -> Curve:
    return curve(runs[0], split, metric) if len(runs) == 1 else together(runs, split, metric)


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values]


def attention(found: Sequence[Found]) -> tuple[dict[str, Any], list[str]]:
    """The attention of the first run of each task and label, with its pictures, each once; and what is not shown."""
    first: dict[tuple[str, str], Found] = {}
    for one in found:
        first.setdefault((task(one.run), one.run.label), one)
    shown = list(first.values())[:MOST_ATTENTION_RUNS]
    pictures: dict[str, int] = {}
    problems = []
    made = []
    for one in shown:
        try:
            photos = [_photo(photo, pictures) for photo in one.content[:MOST_PHOTOS]]
        except OSError:
            problems.append(f"A picture in {one.run.folder}/analysis is damaged: make it again with tools/analyse.py.")
            continue
        name = f"{one.run.label}, seed {one.run.seed} — {task(one.run)}"
        made.append({"name": name, "photos": photos})
    hidden = len(found) - len(shown)
    if hidden:
        problems.append(f"The attention of {hidden} further runs is not shown: one run a recipe, {len(shown)} in all.")
    more = max((len(one.content) for one in shown), default=0) - MOST_PHOTOS
    if more > 0:
        problems.append(f"The attention on {more} further photos is not shown: {MOST_PHOTOS} a run.")
    return {"runs": made, "pictures": list(pictures)}, problems


def _photo(photo: Photo, pictures: dict[str, int]) -> dict[str, Any]:
    return {
        "name": photo.name,
        "true": photo.true,
        "predicted": photo.predicted,
        "probability": round(photo.probability, _DIGITS),
        "picture": pictures.setdefault(_photo_uri(photo.file), len(pictures)),
        "overlays": [
            {
                "stage": overlay.stage,
                "tap": overlay.tap,
                "kind": overlay.kind,
                "peak": round(overlay.peak, 2),
                "top": [[channel, round(weight, 6)] for channel, weight in overlay.top],
                "picture": pictures.setdefault(_overlay_uri(overlay.file), len(pictures)),
            }
            for overlay in photo.overlays
        ],
    }


def _photo_uri(file: Path) -> str:
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    made = io.BytesIO()
    image.save(made, "JPEG", quality=85)
    return data_uri("image/jpeg", made.getvalue())


def _overlay_uri(file: Path) -> str:
    with Image.open(file) as opened:
        image = opened.convert("RGBA")
    image.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
    made = io.BytesIO()
    image.save(made, "PNG", optimize=True)
    return data_uri("image/png", made.getvalue())
