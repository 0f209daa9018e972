"""The network that a finished run trained, as something to give pictures to."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from PIL import Image

from afa_jax import trees
from afa_jax.data.augment import Preprocess
from afa_jax.data.images import decode, five_crops, resize
from afa_jax.errors import UserError
from afa_jax.evaluation.logits import logits_of, softmax
from afa_jax.inference.finished import Finished
from afa_jax.models import weights, zoo
from afa_jax.plan import build, preprocess
from afa_jax.settings import Experiment, image_sizes
from afa_jax.training.parallel import Devices
from afa_jax.training.workdir import MODEL
from afa_jax.types import Variables

BATCH = 64

Picture = str | Path | bytes | Image.Image | np.ndarray


@dataclass(frozen=True)
class Classifier:
    """A trained network with what it takes to show it a picture; called on pictures, it gives probabilities.

    Attributes:
      module, variables: the network; its activations are float32, whatever they were in training.
      classes: by the network's outputs.
      preprocess: of the run's evaluation.
      resize: side in pixels to which pictures are resized before the crop.
      ten_crop: the logits are the mean over ten crops, as the run's evaluation took it.
    """

    module: nn.Module
    variables: Variables
    classes: tuple[str, ...]
    preprocess: Preprocess
    resize: int
    ten_crop: bool

    def pixels(self, picture: Picture) -> np.ndarray:
        """What the network takes of a picture: uint8 `[S, S, 3]`, or of ten crops five, `[5, size, size, 3]`.

        Args:
          picture: a file's path or content, a Pillow image, or uint8 `[H, W, 3]`.

        Raises:
          UserError: an array that is no picture.
          Exception: whatever Pillow and the file system raise for a file that is none.
        """
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3 or not picture.size:
                raise UserError(
                    f"A picture must be uint8 [height, width, 3], not {picture.dtype} {list(picture.shape)}."
                )
            picture = Image.fromarray(picture)
        if isinstance(picture, str | Path):
            picture = Path(picture).read_bytes()
        image = decode(picture) if isinstance(picture, bytes) else picture.convert("RGB")
        if not self.ten_crop:
            return resize(image, self.resize, "square")
        return five_crops(resize(image, self.resize, "whole"), self.preprocess.size)

    def logits(self, pixels: np.ndarray, batch_size: int = BATCH) -> np.ndarray:
        """float32 `[B, classes]`.

        Args:
          pixels: of at most `batch_size` pictures, as `pixels` gives them.
        """
        return logits_of(self.module, self._everywhere, self.preprocess, pixels, batch_size)

    def __call__(self, pictures: Iterable[Picture], batch_size: int = BATCH) -> np.ndarray:
        """The probabilities of the classes, float64 `[N, classes]`.

        Args:
          pictures: any of `pixels`, such as a list of files or uint8 `[N, H, W, 3]`.
        """
        rows = [
            softmax(self.logits(np.stack([self.pixels(picture) for picture in batch]), batch_size))
            for batch in batched(pictures, batch_size)
        ]
        return np.concatenate([np.zeros((0, len(self.classes))), *rows])

    @cached_property
    def _everywhere(self) -> Variables:
        return Devices().replicate(self.variables)


def batched(items: Iterable[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items in order, `size` at a time."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


def classifier(run: Finished) -> Classifier:
    """The network that a run trained; its data set and source network need not be there any more.

    Raises:
      UserError: the trained network is not there any more, is damaged, or does not say its classes.
    """
    e: Experiment = run.experiment
    file = run.folder / MODEL / weights.FILE
    if not file.is_file():
        raise UserError(f"The trained network {file} is not there: bring it back.")
    variables = weights.load(e.network, file)
    classes = _classes(file)
    module = build(e, len(classes), jnp.float32)
    outputs = trees.get(variables["params"], zoo.NETWORKS[e.network].head)["kernel"].shape[-1]
    if outputs != len(classes):
        raise UserError(f"{file} names {len(classes)} classes, and its network has {outputs} outputs: it is damaged.")
    ten_crop = e.data.augmentation == "improved"
    return Classifier(module, variables, classes, preprocess(e), image_sizes(e)[1], ten_crop)


def _classes(file: Path) -> tuple[str, ...]:
    classes = weights.describe(file).get("classes")
    if not (isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)):
        raise UserError(
            f"{file} does not say the names of its classes: it is of an older version. Finish the run again with this "
            "one (remove its summary.json and give its command)."
        )
    return tuple(classes)
