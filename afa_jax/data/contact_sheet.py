"""A picture of a data set to look at: a row of images for each class."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from afa_jax.data.dataset import Dataset

_ROWS, _COLUMNS, _TILE, _GAP, _NAME = 24, 10, 96, 4, 220


def contact_sheet(data: Dataset) -> Image.Image:
    """The first training images of each class, and then of classes that are held out the first test images.

    Of more than 24 classes, as many are shown, spread evenly over the list.
    """
    rows = [(data.train, label, name, "for training") for label, name in enumerate(data.classes)]
    rows += [(data.test, label, name, "held out") for label, name in enumerate(data.held_out)]
    shown = np.unique(np.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).round().astype(int))
    step = _TILE + _GAP
    sheet = Image.new("RGB", (_NAME + _COLUMNS * step + _GAP, len(shown) * step + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, (split, label, name, purpose) in enumerate(rows[i] for i in shown):
        members = np.flatnonzero(split.labels == label)
        top = row * step + _GAP
        said = f"{name.replace('_', ' ')[:26]}\n{len(members):,} {purpose}"
        draw.text((8, top + _TILE / 2), said, "black", font, anchor="lm")
        for column, i in enumerate(members[:_COLUMNS]):
            tile = Image.fromarray(split.images[i]).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (_NAME + column * step + _GAP, top))
    return sheet
