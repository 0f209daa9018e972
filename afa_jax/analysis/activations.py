"""Activation maps of chosen channels, before and after training (AFA Fig. 2; DELTA Fig. 6 and 7)."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from afa_jax.analysis.trained import Net, TrainedRun, watch
from afa_jax.data.augment import Preprocess
from afa_jax.data.dataset import Split
from afa_jax.errors import UserError

CHANNELS = 4
"""How many channels are chosen where none are named."""


def normalise(maps: np.ndarray) -> np.ndarray:
    """(a − min)/(max − min) of each map, in [0, 1] (DELTA §4.4); a map that is the same everywhere gives zeros.

    Shapes: `[…, H, W, C]` to the same, float32; a map is the H × W positions of one channel of one image.
    """
    low, high = maps.min((-3, -2), keepdims=True), maps.max((-3, -2), keepdims=True)
    spread = high - low
    return ((maps - low) / np.where(spread > 0, spread, 1)).astype(np.float32)


def feature_maps(net: Net, preprocess: Preprocess, photos: Split, layer: str) -> np.ndarray:
    """What `layer` puts out for each photo: `[P, H, W, C]`."""
    return np.concatenate([outputs.features[layer] for outputs in watch(net, preprocess, photos, (layer,))])


def quiet_channels(maps: np.ndarray, number: int) -> list[int]:
    """The channels on which these photos activate the network least, although they do, least first.

    DELTA (§4.4) shows filters "on which the source model has low activation" without saying how they were found. Here
    it is the mean of |a| over photos and positions, which also serves layers that stand before a ReLU; channels on
    which it is zero are dead and left out.

    Args:
      maps: `[P, H, W, C]` of the source network.
    """
    activation = np.abs(maps).mean((0, 1, 2))
    order = np.argsort(activation, kind="stable")
    return [int(c) for c in order if activation[c] > 0][:number]


def activation_maps(run: TrainedRun, photos: Split, layer: str, channels: Sequence[int]) -> dict[str, Any]:
    """The maps of chosen channels, each normalised by itself; what `activation_maps.npz` holds.

    Args:
      channels: their numbers; none for the quiet ones.

    Returns:
      `photos` uint8 `[P, S, S, 3]`, `names`, `layer`, `channels` int `[K]`, and float32 `[P, K, h, w]` of the network
      before (`source`) and after training (`target`).

    Raises:
      UserError: the layer has no channel of that number.
    """
    before, after = (feature_maps(net, run.preprocess, photos, layer) for net in (run.start, run.target))
    _check(channels, before.shape[-1], layer)
    chosen = list(channels) or quiet_channels(before, CHANNELS)
    return {
        "photos": np.asarray(photos.images[:]),
        "names": np.array(photos.files, str),
        "layer": np.array(layer),
        "channels": np.array(chosen, np.int64),
        "source": np.moveaxis(normalise(before[..., chosen]), -1, 1),
        "target": np.moveaxis(normalise(after[..., chosen]), -1, 1),
    }


def _check(channels: Iterable[int], number: int, layer: str) -> None:
    for channel in channels:
        if not 0 <= channel < number:
            raise UserError(f"The layer {layer} has channels 0 to {number - 1}, and no {channel}.")
