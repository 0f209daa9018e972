"""Verification of identities that were not trained on: the true accept rate (TAR) at a false accept rate (FAR).

A pair is accepted if the cosine similarity of its embeddings is *greater* than the threshold. The threshold at a FAR f
over I impostor pairs is the similarity of the impostor pair of rank ⌊f·I⌋ + 1: no lower one accepts at most f·I of
them. Among equal similarities none is preferred, so with ties fewer than ⌊f·I⌋ may be accepted, and never more.
"""

import math
from collections.abc import Callable, Sequence
from decimal import ROUND_CEILING, Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from afa_jax import compilation
from afa_jax.data.augment import Preprocess
from afa_jax.data.batches import test_batches
from afa_jax.data.dataset import Split
from afa_jax.errors import DivergedError, UserError
from afa_jax.evaluation.pairs import Pairs, similarities
from afa_jax.models.zoo import forward
from afa_jax.training.parallel import Devices
from afa_jax.types import Variables

FARS = (1e-5, 1e-6, 1e-7)
"""Those of AFA Table 12."""
_BLOCK = 1024  # images; a block of their pairs takes a few times 4 MB
_POINTS_A_DECADE = 10  # of the curve
_Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations


@lru_cache(maxsize=8)
def _compile(module: nn.Module, preprocess: Preprocess, layer: str) -> Callable[[Variables, Array], Array]:
    def run(variables: Variables, images: Array) -> Array:
        def look(view: Array) -> Array:
            return forward(module, variables, view, taps=(layer,)).features[layer].astype(jnp.float32)

        seen = preprocess.test(images)
        return look(seen) + look(seen[:, :, ::-1])

    return compilation.jit(run)


def embed(
    module: nn.Module, variables: Variables, split: Split, preprocess: Preprocess, batch_size: int, layer: str
) -> np.ndarray:
    """The embedding of each image plus that of its mirror image, of length 1: float32 `[N, D]`.

    All devices of all hosts take part, each host with the images that it reads; all hosts get all embeddings.

    Args:
      variables: on every device.
      split: of images `[S, S, 3]`, of which the network sees the centre crop, in eval mode.
      batch_size: of all devices together; is rounded up for equal parts.
      layer: a tap that gives `[B, D]`, such as `head:input`.

    Raises:
      DivergedError: an embedding has no direction, as `directions`.
    """
    run, devices = _compile(module, preprocess, layer), Devices()
    batch_size = math.ceil(batch_size / jax.device_count()) * jax.device_count()
    made = []
    for batch in test_batches(split, batch_size, devices.part):
        made.append(devices.whole(run(variables, devices.spread({"image": batch["image"]})["image"])))
        jax.block_until_ready(made[-2:][0])  # no more than two batches lie on the device
    embeddings = np.concatenate([np.asarray(part) for part in made])
    assert embeddings.ndim == 2, f"{layer} gives no vectors, but {embeddings.shape[1:]}"
    return directions(embeddings[: len(split)], split.files)


def directions(embeddings: np.ndarray, files: Sequence[str] = ()) -> np.ndarray:
    """The embeddings divided by their lengths, float32 `[N, D]`.

    Args:
      files: the images' names, for a person.

    Raises:
      DivergedError: one is zero or not finite.
    """
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    bad = np.flatnonzero(~((lengths > 0) & np.isfinite(lengths)))
    if len(bad):
        first = files[bad[0]] if files else f"image {bad[0]}"
        raise DivergedError(
            f"The embedding of {first}{f' and {len(bad) - 1:,} more' if len(bad) > 1 else ''} is "
            f"{'zero' if lengths[bad[0]] == 0 else 'not finite'} and has no direction to compare: the network's "
            "weights are spoilt; train at a lower learning rate."
        )
    return (embeddings / lengths).astype(np.float32)


def count_pairs(labels: np.ndarray) -> tuple[int, int]:
    """(genuine pairs, impostor pairs) of images of these identities."""
    images = np.unique_counts(labels).counts.astype(np.int64)
    count, genuine = int(images.sum()), int((images * (images - 1) // 2).sum())
    return genuine, count * (count - 1) // 2 - genuine


def smallest_far(impostors: int) -> float:
    """The smallest FAR that so many impostor pairs can state, to two digits."""
    return float(Context(prec=2, rounding=ROUND_CEILING).divide(Decimal(1), Decimal(impostors)))


def statable(labels: np.ndarray, fars: Sequence[float]) -> tuple[float, ...]:
    """Those of the FARs for which images of these identities have enough impostor pairs; may be none."""
    impostors = count_pairs(labels)[1]
    return tuple(far for far in fars if _allowed(far, impostors))


def check(
    labels: np.ndarray, fars: Sequence[float] = FARS, advice: str = "state no smaller one, or hold out more identities"
) -> None:
    """Holds that images of these labels have the pairs that these FARs need; may be asked before anything is trained.

    Raises:
      UserError: no pair is genuine, none is an impostor's, or a FAR needs more impostor pairs than there are; with
        `advice`.
    """
    genuine, impostors = count_pairs(labels)
    if not impostors:
        raise UserError("Verification needs images of two identities or more: hold out more of them.")
    if not genuine:
        raise UserError("Verification needs two images of one identity: each of those held out has one only.")
    for far in fars:
        if not 0 < far < 1:
            raise UserError(f"A FAR is a share between 0 and 1, and not {far}.")
        if not _allowed(far, impostors):
            raise UserError(
                f"A FAR of {far:g} needs {math.ceil(1 / Fraction(repr(float(far)))):,} impostor pairs, and "
                f"{len(labels):,} images of {len(np.unique(labels)):,} identities make {impostors:,}: the smallest FAR "
                f"that can be stated is {smallest_far(impostors):g}; {advice}."
            )


def verify(
    embeddings: np.ndarray, labels: np.ndarray, fars: Sequence[float] = FARS, block: int = _BLOCK
) -> dict[str, Any]:
    """TAR at each FAR, exact over all pairs, and the curve of both (ROC).

    Args:
      embeddings: `[N, D]` of length 1; their inner product in float32 is the similarity.
      labels: int `[N]`, an identity each.
      block: so many images are compared with so many at once; nothing else depends on it.

    Returns:
      What `summary.json` holds: `pairs`, how many are `genuine` and how many `impostor`; `tar_at_far`, for each FAR
      `far`, `tar` with its 95 % interval `low` to `high` (see `interval`), `impostors`, the number of impostor pairs
      that are accepted, and `threshold`; `roc`, [FAR, TAR] by rising FAR, ten points a decade from the smallest that
      can be stated to 1; `identities` and `images`.

    Raises:
      UserError: as `check`.
    """
    check(labels, fars)
    pairs = Pairs.of(embeddings, labels, block)
    curve = _grid(pairs.impostors)
    allowed = np.array([_allowed(far, pairs.impostors) for far in (*fars, *curve)])
    thresholds, impostors = pairs.impostors_at(allowed + 1)
    accepted = pairs.genuine_above(thresholds)
    tars = accepted.sum(0) / pairs.genuine.sum()
    stated = []
    for i, far in enumerate(fars):
        low, high = interval(accepted[:, i], pairs.genuine)
        about = {"far": float(far), "tar": float(tars[i]), "low": low, "high": high}
        stated.append(about | {"impostors": int(impostors[i]), "threshold": float(similarities(thresholds[i]))})
    return {
        "pairs": {"genuine": int(pairs.genuine.sum()), "impostor": pairs.impostors},
        "tar_at_far": stated,
        "roc": [[far, float(tar)] for far, tar in zip(curve, tars[len(fars) :], strict=True)] + [[1.0, 1.0]],
        "identities": pairs.identities,
        "images": len(labels),
    }


def interval(accepted: np.ndarray, pairs: np.ndarray) -> tuple[float, float]:
    """A 95 % interval of TAR over other identities: Wilson's, with as many trials as the pairs are worth.

    Wilson's interval over all genuine pairs would be far too narrow: n images of an identity make n(n − 1)/2 pairs,
    which share images and the person. TAR is a ratio of sums over identities, whose variance between these says how
    many independent pairs would be as uncertain (the design effect; Rao and Scott, Biometrics 1992). Where all or no
    pairs are accepted nothing varies, and each identity counts as one trial.

    The threshold is taken as given. At the smallest FARs it stands on a few impostor pairs, so the true uncertainty is
    larger there.

    Args:
      accepted, pairs: int `[C]`, the genuine pairs of each identity.
    """
    accepted, pairs = (values[pairs > 0].astype(np.float64) for values in (accepted, pairs))
    count, total = len(pairs), pairs.sum()
    tar = accepted.sum() / total
    trials = float(count)
    residual = ((accepted - tar * pairs) ** 2).sum()
    if residual > 0 and count > 1:
        variance = count / (count - 1) * residual / total**2
        trials = min(tar * (1 - tar) / variance, total)
    middle = (tar + _Z**2 / (2 * trials)) / (1 + _Z**2 / trials)
    half = _Z * math.sqrt(tar * (1 - tar) / trials + (_Z / trials) ** 2 / 4) / (1 + _Z**2 / trials)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def _allowed(far: float, impostors: int) -> int:
    """⌊f·I⌋, of f as it is written: 1e-6 of 3 million is 3."""
    return int(Fraction(repr(float(far))) * impostors)


def _grid(impostors: int) -> list[float]:
    """FARs below 1 for the curve, rising, the same for all numbers of pairs that allow them."""
    steps = range(1, math.ceil(_POINTS_A_DECADE * math.log10(impostors)) + 1)
    fars = (float(f"{10 ** (-step / _POINTS_A_DECADE):.4g}") for step in reversed(steps))
    return [far for far in fars if _allowed(far, impostors)]
