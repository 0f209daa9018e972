"""The likeliest classes of photos, and how they are written: lines for a person, CSV, JSON."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from afa_jax.evaluation.logits import softmax
from afa_jax.inference.classifier import Classifier
from afa_jax.inference.photos import Photo, stacked


@dataclass(frozen=True)
class Prediction:
    """What is said of one photo.

    Attributes:
      top: the likeliest classes with their probabilities, in order; empty for a photo that could not be read.
      fault: why it could not.
      picture: the file in which the attention is laid over it, if that was asked for.
    """

    file: str
    top: tuple[tuple[str, float], ...] = ()
    fault: str = ""
    picture: str = ""


Draw = Callable[[list[Photo]], list[str]]
"""Draws the photos of a batch, all of which have pixels, and gives the files."""


def predict(
    classifier: Classifier, batches: Iterable[list[Photo]], top: int, batch_size: int, draw: Draw | None = None
) -> Iterator[Prediction]:
    """What a network says of photos, in their order, batch by batch.

    Args:
      batches: as `photos.read` gives them, of at most `batch_size` each.
      top: how many classes, or all where there are fewer.
    """
    for batch in batches:
        good = [photo for photo in batch if photo.pixels is not None]
        likely: Iterator[np.ndarray] = iter(())
        drawn = iter(draw(good) if draw and good else [""] * len(good))
        if good:
            likely = iter(softmax(classifier.logits(stacked(good), batch_size)))
        for photo in batch:
            if photo.pixels is None:
                yield Prediction(photo.name, fault=photo.fault)
            else:
                said = Prediction(photo.name, _likeliest(next(likely), classifier.classes, top))
                yield replace(said, picture=next(drawn))


def _likeliest(row: np.ndarray, classes: tuple[str, ...], top: int) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-row, kind="stable")[:top]
    return tuple((classes[i], float(row[i])) for i in order)


def to_text(said: Iterable[Prediction], top: int) -> Iterator[str]:
    """A line a photo; names that hold line ends and the like are spelt out."""
    for one in said:
        if one.fault:
            continue
        (name, probability), *others = one.top
        also = f" ({', '.join(f'{other} {_percent(p)}' for other, p in others)})" if others else ""
        line = f"{one.file}: {name} {_percent(probability)}{also}"
        yield "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line) + "\n"


def to_csv(said: Iterable[Prediction], top: int) -> Iterator[str]:
    """A row a photo: file, the likeliest class and its probability, those that follow, the picture and the fault."""
    places = ["", *(f"_{place}" for place in range(2, top + 1))]
    head = ["file", *(f"{what}{place}" for place in places for what in ("class", "probability"))]
    yield _row([*head, "attention", "error"])
    for one in said:
        cells = [cell for pair in one.top for cell in pair]
        yield _row([one.file, *cells, *[""] * (2 * top - len(cells)), one.picture, one.fault])


def to_json(said: Iterable[Prediction], top: int) -> Iterator[str]:
    """A list with one object a photo, a line each."""
    before = "[\n"
    for one in said:
        yield before + json.dumps(_object(one), ensure_ascii=False)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


FORMATS: Mapping[str, Callable[[Iterable[Prediction], int], Iterator[str]]] = {
    "text": to_text,
    "csv": to_csv,
    "json": to_json,
}


def _object(one: Prediction) -> dict[str, Any]:
    if one.fault:
        return {"file": one.file, "error": one.fault}
    (name, probability), *_ = one.top
    told: dict[str, Any] = {"file": one.file, "class": name, "probability": probability}
    told["top"] = [{"class": name, "probability": probability} for name, probability in one.top]
    return {**told, "attention": one.picture} if one.picture else told


def _row(cells: list[Any]) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerow(cells)
    return written.getvalue()


def _percent(probability: float) -> str:
    return f"{100 * probability:.1f} %"
