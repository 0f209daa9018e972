"""Says what is on photos, with the network that a run trained.

    python -m afa_jax.predict runs/dogs/afa/seed0 holiday/                        # a line a photo
    python -m afa_jax.predict runs/dogs/afa/seed0 holiday/ a.jpg -o said.csv      # or .json
    python -m afa_jax.predict runs/dogs/afa/seed0 a.jpg --attention pictures/     # and where the attention lay

Photos are files in any format that Pillow reads, and folders, whose files are all taken, at any depth. They are
resized, cropped and normalised as the run's own evaluation does it. A folder may be of any size: no more than two
batches are in memory, and what is said is written as it comes.

A picture of --attention has the photo and beside it, for each stage of the run, where its attention lies at the last of
the layers that were aligned. It needs the run's checkpoints, its data set and its source network; predictions alone
need nothing but `model/` and `summary.json`.

A photo that cannot be read is told on stderr, and in CSV (column `error`) and JSON (`error`); the others are predicted.
Exit status: 0 done; 2 if a photo could not be read, or nothing could be done, with a sentence.
"""

import argparse
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from afa_jax.command_line import guarded, positive
from afa_jax.errors import UserError
from afa_jax.files import whole
from afa_jax.inference import photos
from afa_jax.inference.classifier import BATCH, classifier
from afa_jax.inference.finished import reopen
from afa_jax.inference.photos import Photo, stacked
from afa_jax.inference.predictions import FORMATS, Draw, Prediction, predict


@dataclass
class Tally:
    """How many photos there were, and how many of them could not be read."""

    photos: int = 0
    bad: int = 0

    def watch(self, said: Iterable[Prediction]) -> Iterator[Prediction]:
        """The same predictions; those without a result are told on stderr."""
        for one in said:
            self.photos += 1
            if one.fault:
                self.bad += 1
                _complain(f"{one.file}: {one.fault}.")
            yield one


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    return guarded("predict", lambda: _predict(given))


def _predict(given: argparse.Namespace) -> int:
    form = given.format or (given.output.suffix[1:] if given.output else "text")
    if form not in FORMATS:
        raise UserError(f"{given.output} is neither .csv nor .json: name one of these, or give --format.")
    network = classifier(reopen(given.workdir))
    files = photos.find(given.photos)
    draw = _painter(given.workdir, given.attention) if given.attention else None
    batches = photos.read(files, network.pixels, given.batch_size, os.cpu_count() or 1)
    tally, top = Tally(), min(given.top, len(network.classes))
    said = tally.watch(predict(network, batches, top, given.batch_size, draw))
    with _opened(given.output) as stream:
        for text in FORMATS[form](said, top):
            stream.write(text)
    if tally.bad and tally.photos > 1:
        rest = "; the others are predicted" if tally.bad < tally.photos else ""
        _complain(f"{tally.bad} of {tally.photos} photos could not be read{rest}.")
    return 2 if tally.bad else 0


def _painter(workdir: Path, folder: Path) -> Draw:
    from afa_jax.analysis.pictures import Painter  # matplotlib and more, which predictions alone do not want
    from afa_jax.analysis.trained import TrainedRun

    painter = Painter(TrainedRun(workdir), folder)

    def draw(batch: list[Photo]) -> list[str]:
        return painter.draw([photo.name for photo in batch], stacked(batch))

    return draw


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """The file, there when it is whole; or stdout, in which what its encoding does not have is spelt out."""
    if output is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        yield sys.stdout
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole(output) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        yield stream


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path, help="of a finished run")
    parser.add_argument("photos", nargs="+", type=Path, metavar="photo_or_folder")
    parser.add_argument("-o", "--output", type=Path, help="a .csv or .json file, in place of stdout")
    parser.add_argument("--format", choices=FORMATS, help="in place of the one that the output's name says")
    parser.add_argument("--top", type=positive, default=5, help="how many classes are told of each photo (default 5)")
    parser.add_argument("--batch_size", type=positive, default=BATCH, help=f"photos at a time (default {BATCH})")
    parser.add_argument("--attention", type=Path, metavar="FOLDER", help="draw where the attention lies, into there")
    return parser


def _complain(sentence: str) -> None:
    print(f"predict: {UserError(sentence)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
