"""What happens to a batch of uint8 images on the device, inside the compiled step."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from afa_jax.batch_axis import WHOLE, BatchAxis
from afa_jax.data.images import centre_crop


@dataclass(frozen=True)
class Preprocess:
    """The papers' "default" treatment of images that are already resized: crop, flip, normalise (AFA §5.1).

    Attributes:
      size: side of the crop in pixels.
      flip: mirror half of the training images, and all crops of ten-crop evaluation.
      mean, std: of the normalisation, a channel each, for images scaled to [0, 1].
    """

    size: int
    flip: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def train(self, key: Array, images: Array, axis: BatchAxis = WHOLE) -> Array:
        """Random crop and flip: uint8 `[B, S, S, 3]` to float32 `[B, size, size, 3]`.

        What happens to an image depends on the key and its place in the whole batch, however that is spread.
        """
        crop_key, flip_key = jax.random.split(key)
        images = random_crop(crop_key, images, self.size, axis)
        if self.flip:
            images = random_flip(flip_key, images, axis)
        return normalise(images, self.mean, self.std)

    def test(self, images: Array) -> Array:
        """The centre crop: uint8 `[B, S, S, 3]` to float32 `[B, size, size, 3]`."""
        return normalise(centre_crop(images, self.size), self.mean, self.std)

    def views(self, images: Array) -> Array:
        """What a test image's logits are the mean of: uint8 `[V, B, size, size, 3]`, to be normalised one by one.

        Args:
          images: `[B, S, S, 3]`, of which the centre crop is the only view, or five crops of each,
            `[B, 5, size, size, 3]`; with their mirror images, if images are mirrored at all, they are the ten of
            ten-crop evaluation (DELTA Table 2).
        """
        if images.ndim == 4:
            return centre_crop(images, self.size)[None]
        crops = jnp.moveaxis(images, 1, 0)
        return jnp.concatenate([crops, crops[..., ::-1, :]]) if self.flip else crops


def random_crop(key: Array, images: Array, size: int, axis: BatchAxis = WHOLE) -> Array:
    """A square at a place of its own in each image; every place is equally likely."""
    batch, height, width, channels = images.shape
    limits = jnp.array([height - size + 1, width - size + 1])
    corners = axis.own(jax.random.randint(key, (batch * axis.size, 2), 0, limits))

    def crop(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (size, size, channels))

    return jax.vmap(crop)(images, corners)


def random_flip(key: Array, images: Array, axis: BatchAxis = WHOLE) -> Array:
    """Mirrors each image left to right with probability one half."""
    flipped = axis.own(jax.random.bernoulli(key, shape=(len(images) * axis.size, 1, 1, 1)))
    return jnp.where(flipped, images[:, :, ::-1], images)


def normalise(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """uint8 in [0, 255] to float32, each channel by its own mean and standard deviation."""
    return (jnp.asarray(images, jnp.float32) / 255 - jnp.array(mean)) / jnp.array(std)
