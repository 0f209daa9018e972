"""What a config comes to: its stages, checked taps, and what makes its run this run and no other."""

from hashlib import sha256
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.core import FrozenDict

from afa_jax.data import catalog
from afa_jax.data.augment import Preprocess
from afa_jax.data.dataset import Request
from afa_jax.errors import UserError, nearest
from afa_jax.evaluation import verification
from afa_jax.files import user_path
from afa_jax.models import zoo
from afa_jax.models.cosine import CosineHead
from afa_jax.models.network import Network
from afa_jax.settings import Data, Experiment, Source, false_accept_rates, fold, identity, image_sizes, normalisation
from afa_jax.training.prepare import read_increases
from afa_jax.transfer.method import Anatomy, Need
from afa_jax.transfer.recipes import RECIPES, Stage, stages


def anatomy(network: Network) -> Anatomy:
    """Where the methods find things in a network."""
    return Anatomy(network.head, network.heads, network.embedding or network.head, FrozenDict(network.filters))


def build(e: Experiment, classes: int, dtype: Any) -> nn.Module:
    """The experiment's network with as many classes, read as its loss reads it."""
    module = zoo.create(e.network, classes, dtype)
    return CosineHead(module, zoo.NETWORKS[e.network].head, e.loss.scale) if e.loss.by_angle else module


def preprocess(e: Experiment) -> Preprocess:
    """What happens to the images of an experiment on their way into the network."""
    mirrored = e.data.mirror and catalog.find(e.data.name).mirrored
    return Preprocess(image_sizes(e)[0], mirrored, *normalisation(e))


def data_request(e: Experiment) -> Request:
    """The target task's images as the experiment wants them."""
    (size, resize), d = image_sizes(e), e.data
    return Request(
        size=resize,
        crop=size,
        per_class=d.per_class,
        seed=e.seed,
        augmentation=d.augmentation,
        folder=d.dir,
        test_fraction=d.test_fraction,
        splits=d.splits,
        skip_damaged=d.skip_damaged,
        held_out=d.held_out,
        fold=fold(d),
    )


def source_request(e: Experiment) -> Request:
    """The source task's images, as many as there are: those on which a network that is trained here was trained."""
    size, resize = image_sizes(e)
    source, skip = e.source, e.data.skip_damaged
    return Request(
        *(resize, size),
        folder=source.dir,
        splits=source.splits,
        skip_damaged=skip,
        held_out=e.data.held_out,
    )


def source_experiment(e: Experiment) -> Experiment:
    """The training of the source network, where there is none to be had: `source.weights = "train"`."""
    size, resize = image_sizes(e)
    return Experiment(
        data=Data(
            e.source.dataset,
            e.source.dir,
            splits=e.source.splits,
            skip_damaged=e.data.skip_damaged,
            mirror=e.data.mirror,
            held_out=e.data.held_out,
            image_size=size,
            resize=resize,
        ),
        source=Source(normalisation=e.source.normalisation),
        loss=e.loss,
        network=e.network,
        recipe="scratch",
        batch_size=e.source.batch_size,
        steps=e.source.steps,
        learning_rate=e.source.learning_rate,
        dtype=resolved_dtype(e),
        parallel=e.parallel,
    )


def rates(e: Experiment, labels: np.ndarray) -> tuple[float, ...]:
    """The false accept rates at which images of the identities `labels` are verified.

    Raises:
      UserError: they are too few for one of those wanted; in a part of a cross-validation, for the first.
    """
    wanted = false_accept_rates(e)
    if not e.data.fold:
        verification.check(labels, wanted)
        return wanted
    # A part of the identities that are trained on has fewer pairs; alpha is chosen by the first rate.
    advice = "cross-validate in fewer parts, or name a larger rate first in config.fars"
    verification.check(labels, wanted[:1], advice)
    return verification.statable(labels, wanted)


def source_rates(training: Experiment, labels: np.ndarray) -> str:
    """`fars` of a source network's training: all that its own held-out identities can state."""
    if not catalog.find(training.data.name).verified:
        return training.fars
    found = verification.statable(labels, [float(f"1e-{digits}") for digits in range(2, 8)])
    return ",".join(f"{rate:g}" for rate in found or [verification.smallest_far(verification.count_pairs(labels)[1])])


def resolved_dtype(e: Experiment) -> str:
    """What `dtype` means on this machine."""
    if e.dtype == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return e.dtype


def run_identity(e: Experiment) -> dict[str, Any]:
    """What makes this run this run, the contents of the files that its methods read included."""
    files = {}
    for name in RECIPES[e.recipe].methods:
        path = user_path(e.methods[name].get("channel_weights", ""))
        if e.methods[name].get("channel_weights") and path.is_file():
            files[f"{name}.channel_weights"] = sha256(path.read_bytes()).hexdigest()
    return identity(e) | ({"files": files} if files else {})


def planned_stages(e: Experiment) -> tuple[Stage, ...]:
    return stages(
        RECIPES[e.recipe],
        steps=e.steps,
        learning_rate=e.learning_rate,
        drop_after=e.drop_after,
        drop=e.drop,
        settings=e.methods,
        convention=e.convention,
        schedule=e.schedule,
        taps=_named_taps(e) or zoo.NETWORKS[e.network].taps[e.taps],
    )


def _named_taps(e: Experiment) -> tuple[str, ...]:
    return tuple(part.strip() for part in e.tap_layers.split(",") if part.strip())


def check_taps(e: Experiment, planned: tuple[Stage, ...]) -> None:
    """Refuses a wrong tap, or a file that does not fit the taps, before anything is trained, the source included."""
    taps = {tap for stage in planned for tap in stage.taps} | set(_named_taps(e))
    if not taps:
        return
    module, where, size = zoo.create(e.network, 1), anatomy(zoo.NETWORKS[e.network]), image_sizes(e)[0]
    shapes = zoo.layer_shapes(module, size)
    for tap in sorted(taps):
        if tap not in shapes:
            raise UserError(f"The network {e.network} has no layer {tap!r} to tap; {nearest(tap, shapes)}")
        if len(shapes[tap]) not in (3, 4):  # tokens, or a map
            maps = [name for name, shape in shapes.items() if len(shape) in (3, 4)]
            raise UserError(f"The layer {tap!r} of {e.network} gives no feature map; {nearest(tap, maps)}")
    named = _named_taps(e)
    if len(set(named)) < len(named):
        raise UserError(f"config.tap_layers names a layer twice: {e.tap_layers}.")
    kernels = zoo.kernels(module, size)
    for stage in planned:
        if Need.TAPS in stage.method.needs:
            filters = [layer for tap in stage.taps for layer in where.filters_of(tap)]
            for tap in stage.taps:
                if not set(where.filters_of(tap)) <= kernels:
                    raise UserError(
                        f"{stage.name} weighs the filters of convolutions, and the tap {tap!r} of {e.network} is none; "
                        f"{nearest(tap, sorted(kernels))}"
                    )
            if len(set(filters)) < len(filters):
                raise UserError(
                    f"{stage.name} weighs each filter once, and the taps {', '.join(stage.taps)} share some."
                )
        if file := stage.settings.get("channel_weights"):
            read_increases(user_path(file), {tap: shapes[tap][-1] for tap in stage.taps})
