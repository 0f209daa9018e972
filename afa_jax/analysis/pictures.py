"""One picture a photo: the photo, and beside it where the attention of each stage lies on it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from afa_jax.analysis.attention import Attention, attention, overlay
from afa_jax.analysis.trained import TrainedRun
from afa_jax.data.dataset import Split
from afa_jax.data.images import centre_crop
from afa_jax.errors import UserError


class Painter:
    """Draws photos of one run into a folder, numbered in the order in which they come."""

    def __init__(self, run: TrainedRun, folder: Path):
        """Raises UserError: the run has no attention that lies somewhere, or what it is made of is gone."""
        self._run, self._folder, self._count = run, folder, 0
        if not any(stage.method.has_taps for stage in run.planned):
            raise UserError(f"{run.folder}: {run.experiment.recipe} has no attention to show.")
        blank = np.zeros((1, run.size, run.size, 3), np.uint8)
        if not self._attention(blank):
            raise UserError(f"{run.folder}: {run.experiment.recipe} has no attention that lies somewhere in a photo.")
        folder.mkdir(parents=True, exist_ok=True)

    def draw(self, names: Sequence[str], pixels: np.ndarray) -> list[str]:
        """Draws some photos.

        Args:
          names: of their files.
          pixels: uint8 `[P, S, S, 3]`, or five crops of each, `[P, 5, size, size, 3]`: the middle one is drawn.

        Returns:
          The files, one a photo.
        """
        crops = centre_crop(pixels if pixels.ndim == 4 else pixels[:, 4], self._run.size)
        found, files = self._attention(crops), []
        for i, (name, crop) in enumerate(zip(names, crops, strict=True)):
            self._count += 1
            file = self._folder / f"{self._count:06d}-{Path(name).stem}.png"
            _strip(crop, [one.shown[i] for one in found]).save(file)
            files.append(str(file))
        return files

    def _attention(self, crops: np.ndarray) -> list[Attention]:
        """Of each stage that has any, each kind's at the last tap whose map has places: tokens stand in a row."""
        photos = Split(crops, np.zeros(len(crops), np.int32))
        found: dict[tuple[str, str], Attention] = {}
        for stage in self._run.stages:
            for one in attention(stage, self._run.preprocess, photos):
                if min(one.shown.shape[1:]) > 1:
                    found[one.stage, one.kind] = one
        return list(found.values())


def _strip(crop: np.ndarray, maps: Sequence[np.ndarray]) -> Image.Image:
    size = len(crop)
    strip = Image.new("RGB", (size * (1 + len(maps)), size))
    strip.paste(Image.fromarray(crop), (0, 0))
    for place, shown in enumerate(maps, 1):
        laid_over = Image.alpha_composite(Image.fromarray(crop).convert("RGBA"), overlay(shown, size))
        strip.paste(laid_over.convert("RGB"), (place * size, 0))
    return strip
