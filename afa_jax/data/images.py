"""One encoded image to the pixels that are kept of it: Pillow throughout, as torchvision's loader and `Resize` do."""

import io
from typing import Any

import numpy as np
from PIL import Image

FORMS = ("square", "middle", "whole")
"""`square`: both sides are resized to S, whatever the aspect ratio. `whole`: the short side is, and the aspect ratio
stays. `middle`: the square in the middle of that."""

_THINNEST = 20  # a line of pixels would become an image of gigabytes

Image.core.set_blocks_max(64)  # Pillow asks for memory less often; a third more images a second


def decode(data: bytes) -> Image.Image:
    """The first frame in RGB. Like torchvision's loader it takes any mode and ignores the orientation in EXIF.

    Of 16-bit grey levels, as infrared cameras write them, the upper eight bits are taken; Pillow's own conversion would
    make all but the darkest white.

    Raises:
      Exception: whatever Pillow raises for what is no whole image.
    """
    image = Image.open(io.BytesIO(data))
    image.load()
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def resize(image: Image.Image, size: int, form: str) -> np.ndarray:
    """uint8 `[H, W, 3]`, by Pillow's bilinear filter; `size` is S of `FORMS`.

    Raises:
      ValueError: the aspect ratio is to stay, and one side is more than 20 times the other.
    """
    if form == "square":
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    width, height = image.size
    short = min(width, height)
    if max(width, height) > _THINNEST * short:
        raise ValueError(f"{width} × {height} pixels are too thin to keep their aspect ratio")
    target = (int(size * width / short), int(size * height / short))
    large = np.asarray(image.resize(target, Image.Resampling.BILINEAR))
    return large if form == "whole" else centre_crop(large, size)


def centre_crop(images: Any, size: int) -> Any:
    """The square in the middle of `[…, H, W, 3]`, an array of NumPy or JAX.

    An odd margin is split as torchvision's `CenterCrop` does (half to even).
    """
    top, left = (round((side - size) / 2) for side in images.shape[-3:-1])
    return images[..., top : top + size, left : left + size, :]


def five_crops(image: np.ndarray, size: int) -> np.ndarray:
    """The squares in the corners (top left, top right, bottom left, bottom right) and in the middle.

    Args:
      image: uint8 `[H, W, 3]`.
      size: side of the squares.

    Returns:
      uint8 `[5, size, size, 3]`. With the mirror images of these, they are the ten crops of ten-crop evaluation.
    """
    corners = [image[:size, :size], image[:size, -size:], image[-size:, :size], image[-size:, -size:]]
    return np.stack([*corners, centre_crop(image, size)])
