"""A trained network as files for others: its weights for PyTorch, and a program that does without this package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array

from afa_jax.data.augment import Preprocess
from afa_jax.errors import UserError
from afa_jax.evaluation.logits import mean_logits
from afa_jax.files import whole, write_json
from afa_jax.inference.classifier import Classifier
from afa_jax.models import own, weights

PTH, SAFETENSORS, STABLEHLO, CLASSES = "model.pth", "model.safetensors", "model.stablehlo", "classes.json"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""For which the program is made; it runs on whichever the process that reads it has."""


def write_weights(folder: Path, classifier: Classifier, network: str) -> None:
    """Its `state_dict`, as a torch file and as safetensors, in the key names of the network's published files.

    A person's own network, whose layers PyTorch need not have, becomes safetensors under Flax's paths.
    """
    if network in own.NAMES:
        weights.save(folder, network, classifier.variables, classes=classifier.classes)
        return
    for name in (PTH, SAFETENSORS):
        weights.export(folder / name, classifier.variables, network=network)


def write_classes(folder: Path, classifier: Classifier) -> None:
    """The names of the outputs, a JSON list."""
    write_json(folder / CLASSES, classifier.classes)


def program(classifier: Classifier) -> Any:
    """The network with its weights and its preprocessing, as a program for any number of images.

    It takes uint8 `[B, S, S, 3]`, pictures resized to S × S, and gives `logits` and `probabilities`, float32
    `[B, classes]`; crop and normalisation are part of it, so that nobody must repeat their numbers. Where ten crops are
    evaluated, it sees the one in the middle.

    Returns:
      A `jax.export.Exported`.
    """
    # Arrays of NumPy become part of the program.
    variables = jax.tree.map(np.asarray, classifier.variables)
    one_view: Preprocess = classifier.preprocess

    def run(images: Array) -> Mapping[str, Array]:
        logits = mean_logits(classifier.module, variables, one_view, images)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, classifier.resize, classifier.resize, 3), jnp.uint8)
    return jax.export.export(jax.jit(run), platforms=PLATFORMS)(images)


def write_program(folder: Path, classifier: Classifier, network: str) -> None:
    """The program, StableHLO as `jax.export` keeps it.

    Raises:
      UserError: a person's own network cannot be made into one for any number of images.
    """
    try:
        content = program(classifier).serialize()
    except Exception as error:  # whatever a person's code raises
        if network not in own.NAMES:
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"The network {network!r} does not run with a symbol for the number of images ({reason}): write "
            "x.shape[0], not len(x) or a number."
        ) from error
    with whole(folder / STABLEHLO) as partial:
        partial.write_bytes(content)
