"""Writes the network that a run trained as files that do without this package.

    python -m afa_jax.export runs/dogs/afa/seed0 -o dogs/

The target network alone, for attention is needed in training only. Into the folder go

    model.pth, model.safetensors   the weights for PyTorch: torchvision's `state_dict` where it has the network
    model.stablehlo                the network with its weights, crop and normalisation, for any number of images: uint8
                                   in, logits and probabilities out; it runs wherever jax.export does
    classes.json                   the names of the outputs
    README.md                      the model card: data, recipe, seed, results, how to use the files, licence

The preprocessing is part of the program, because a network that is shown pictures normalised otherwise is wrong and
does not say so; the resize before it is Pillow's, and the card says it. For ONNX there is no file: no library that this
project keeps writes it from JAX, and `torch.onnx.export` writes it from model.pth.

The folder must be new or empty. It is there when all of it is. Exit status: 0 done; 2 for what you can mend.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from afa_jax.command_line import guarded
from afa_jax.errors import UserError
from afa_jax.inference.card import CARD, card
from afa_jax.inference.classifier import classifier
from afa_jax.inference.files import write_classes, write_program, write_weights
from afa_jax.inference.finished import Finished, reopen


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path, help="of a finished run")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
    given = parser.parse_args(arguments)

    def work() -> int:
        export(reopen(given.workdir), given.output)
        print(f"{given.output}: {', '.join(sorted(file.name for file in given.output.iterdir()))}.")
        return 0

    return guarded("export", work)


def export(run: Finished, folder: Path) -> None:
    """Writes all the files.

    Raises:
      UserError: the run has no trained network any more, or the folder is in use.
    """
    network = classifier(run)
    with _new(folder) as partial:
        write_weights(partial, network, run.experiment.network)
        write_program(partial, network, run.experiment.network)
        write_classes(partial, network)
        (partial / CARD).write_text(card(run, network), encoding="utf-8")


@contextmanager
def _new(folder: Path) -> Iterator[Path]:
    """Another folder to write to, which becomes `folder` when all is written."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is there already: name a new folder with -o, or remove it.")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


if __name__ == "__main__":
    sys.exit(main())
