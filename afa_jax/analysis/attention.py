"""What the attention of each stage weighs in a photo, at each tap (AFA eq. 5 to 8)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from matplotlib import colormaps
from PIL import Image

from afa_jax.analysis.activations import normalise
from afa_jax.analysis.trained import TrainedRun, TrainedStage, watch
from afa_jax.data.augment import Preprocess
from afa_jax.data.dataset import Split
from afa_jax.transfer.attention import ChannelAttention, SpatialAttention
from afa_jax.types import PyTree

MODULES: Mapping[str, Any] = {"spatial": SpatialAttention(), "channel": ChannelAttention()}
LEARNT: Mapping[str, Callable[[PyTree], Mapping[str, PyTree]]] = {
    "ast": lambda attention: {"spatial": attention},
    "act": lambda attention: {"channel": attention},
    "afa_one_stage": lambda attention: attention,
}
"""Of the methods that learn attention: where its modules are in their parameters, by kind and then by tap."""
FIXED = {"spatial": "positions", "channel": "channels"}
"""Under which name a method keeps attention that is the same for all images, by kind."""
STRONGEST = 10
"""How many channels are named."""
_COLOURS, _OPACITY = "viridis", 0.85  # as bright as it is strong, so that it can be read without seeing its colours


@dataclass(frozen=True)
class Attention:
    """What one stage weighs at one tap.

    Attributes:
      kind: `spatial` or `channel`.
      weights: `[P, H, W]`, or `[P, C]`; those of a photo sum to 1.
      shown: `[P, H, W]`, where in the photo it is: the spatial weights themselves, or Σ_c a_c·|F_c|.
    """

    stage: str
    tap: str
    kind: str
    weights: np.ndarray
    shown: np.ndarray


def attention(stage: TrainedStage, preprocess: Preprocess, photos: Split) -> Iterator[Attention]:
    """The attention of a stage at each of its taps; none where its method has none.

    It is computed from the features of the stage's teacher in eval mode, as in training: from those of the source
    network in stage I of AFA, and of stage I's target in stage II. Attention that a method measured before the stage
    and that is the same for all images (DELTA's, and that of AFA's ablation with fixed attention) is there too.
    """
    learnt = LEARNT.get(stage.stage.name, lambda attention: {})(stage.attention)
    fixed = {kind: stage.constants[name] for kind, name in FIXED.items() if name in stage.constants}
    if stage.teacher is None or not (learnt or fixed):
        return
    taps = stage.stage.taps
    seen = list(watch(stage.teacher, preprocess, photos, taps))
    for tap in taps:
        features = np.concatenate([outputs.features[tap] for outputs in seen])
        for kind, modules in learnt.items():
            weights = np.asarray(MODULES[kind].apply({"params": modules[tap]}, features))
            yield _shown(stage, tap, kind, weights, features)
        for kind, constants in fixed.items():
            weights = np.broadcast_to(np.asarray(constants[tap]), (len(features), constants[tap].size))
            yield _shown(stage, tap, kind, weights, features)


def _shown(stage: TrainedStage, tap: str, kind: str, weights: np.ndarray, features: np.ndarray) -> Attention:
    if kind == "spatial":
        weights = weights.reshape(features.shape[:3])
        return Attention(stage.stage.name, tap, kind, weights, weights)
    return Attention(stage.stage.name, tap, kind, weights, np.einsum("pc,phwc->phw", weights, np.abs(features)))


def overlay(shown: np.ndarray, size: int) -> Image.Image:
    """A picture to lay over a photo: transparent where attention is lowest, bright yellow where it is highest.

    It is stretched from its least to its largest value, so its colours say where it is, not how strong; `peak` does.

    Args:
      shown: `[H, W]`, resized bilinearly to `size` × `size` pixels.

    Returns:
      RGBA.
    """
    # Resized first: stretched before, it would lose its peak again where the map is coarse.
    large = np.asarray(jax.image.resize(shown, (size, size), "bilinear"))
    strength = normalise(large[..., None])[..., 0]
    colours = colormaps[_COLOURS](strength)
    colours[..., 3] = _OPACITY * strength
    return Image.fromarray((255 * colours).round().astype(np.uint8), "RGBA")


def describe(found: Attention, photo: int) -> dict[str, Any]:
    """How strong it is in one photo: `peak`, the largest weight times their number (1 where all weigh the same), and
    of channels the ten strongest with their weights."""
    weights = found.weights[photo].ravel()
    told: dict[str, Any] = {"peak": float(weights.max() * weights.size)}
    if found.kind == "channel":
        order = np.argsort(-weights, kind="stable")[:STRONGEST]
        told["top"] = [[int(c), float(weights[c])] for c in order]
    return told


def predictions(run: TrainedRun, photos: Split) -> list[dict[str, Any]]:
    """What the trained network says of each photo: its `class` (None if unknown), `predicted`, `probability`."""
    logits = np.concatenate([out.logits for out in watch(run.target, run.preprocess, photos)]).astype(np.float64)
    likely = np.exp(logits - logits.max(1, keepdims=True))
    likely /= likely.sum(1, keepdims=True)
    classes, true_classes = run.data.classes, run.data.test_classes
    return [
        {
            "class": true_classes[label] if label >= 0 else None,
            "predicted": classes[row.argmax()],
            "probability": float(row.max()),
        }
        for label, row in zip(photos.labels, likely, strict=True)
    ]
