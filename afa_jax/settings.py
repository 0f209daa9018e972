"""What an experiment is: every setting with its default, frozen so that nothing changes it on the way.

`config.py` is the door through which a config file's settings become these.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from afa_jax.data.catalog import find
from afa_jax.errors import UserError
from afa_jax.models.network import NORMALISATIONS
from afa_jax.models.zoo import NETWORKS
from afa_jax.training.identification import Loss
from afa_jax.transfer.methods import METHODS
from afa_jax.transfer.recipes import RECIPES


@dataclass(frozen=True)
class Data:
    """The target task."""

    name: str = "digits"
    """An entry of the catalogue (`afa_jax/data/builders/`), or `tfds:<name>` for one of TFDS's."""
    dir: str = ""
    """For `image_folder`: where the pictures are, `train/<class>/*` and `test/<class>/*`, or `<class>/*`. For
    `tfds:<name>`: where its records are, if not in the cache."""
    test_fraction: float = 0.2
    """For `image_folder` without `train/` and `test/`: the share of each class that is kept for testing."""
    splits: str = "train,test"
    """For `tfds:<name>`: its splits for training and testing, slices among them (`train[:80%],train[80%:]`)."""
    skip_damaged: bool = False
    """Leave files out that are no images, and say so in the summary, in place of stopping."""
    held_out: int = 80
    """For `identities` and `polyu_nirfd`: so many identities, drawn by the run's seed, are not trained on but verified;
    of a source task that is trained here, as many."""
    per_class: int = 0
    """Labelled images of each class to train on, drawn by the run's seed; 0 takes the whole training split."""
    fold: str = ""
    """Cross-validation: `2/5` tests on the second of five parts of the labelled training images and trains on the
    others; the test images are not looked at."""
    image_size: int = 0
    """Side in pixels of the crop that the network sees; 0 takes the network's own."""
    resize: int = 0
    """Side in pixels to which images are resized before the crop; 0 takes the network's own."""
    augmentation: str = "default"
    """`default`: images are resized whatever their aspect ratio, a random crop and its mirror image are trained on, and
    the centre crop is tested. `improved` (DELTA Table 2): the short side is resized, the middle square trained on, and
    the mean logits of ten crops tested."""
    mirror: bool = True
    """Mirror half of the training images, of the source task too; False where a mirrored image means something else."""


@dataclass(frozen=True)
class Source:
    """The network that the target starts from and is aligned to."""

    weights: str = "train"
    """A published name (`imagenet1k_v1`, …), a file of weights, a saved model's folder, or `train`: train the network
    here, once, on `dataset`, and keep it in the cache."""
    normalisation: str = "network"
    """Of the images on which the weights were trained: `network`, that of the network's published weights; `imagenet`;
    or `half`, mean and deviation 0.5. An Inception-V3 trained with torchvision's `transform_input=False` wants the
    second."""
    dataset: str = "letters"
    """The source task's data set, for `weights = "train"` and for methods that train on it beside the target's."""
    dir: str = ""
    splits: str = "train,test"
    """As `data.dir` and `data.splits`, for it."""
    steps: int = 1500
    batch_size: int = 64
    learning_rate: float = 0.1


@dataclass(frozen=True)
class Experiment:
    """One config, settled."""

    data: Data = field(default_factory=Data)
    source: Source = field(default_factory=Source)
    loss: Loss = field(default_factory=Loss)
    """`name`: `softmax`, or `arcface` with its `scale` and `margin`; of a source network that is trained here too."""
    fars: str = "1e-5,1e-6,1e-7"
    """The false accept rates at which held-out identities are verified; runs are compared at the first."""
    network: str = "resnet10_small"
    recipe: str = "afa"
    """A name in `RECIPES`; several, separated by commas, are compared."""
    seed: int = 0
    """Of the first run: the choice of labelled images, their order and augmentation, the first head and attention."""
    seeds: int = 1
    """Runs of each recipe, with the seeds from `seed` upwards."""

    batch_size: int = 64
    steps: int = 9000
    """Optimizer steps of a run, shared out evenly among its stages (AFA §5.2)."""
    learning_rate: float = 0.01
    drop_after: float = 2 / 3
    """The share of each stage after which the learning rate is multiplied by `drop`."""
    drop: float = 0.1
    schedule: str = "step"
    """`step`: the rate is multiplied by `drop` once; `exponential`: it falls steadily and passes the same point."""
    momentum: float = 0.9
    head_rate: float = 1.0
    """The head's learning rate as a multiple of `learning_rate`."""
    attention_rate: float = 1.0
    """The attention's learning rate as a multiple of `learning_rate`."""

    convention: str = "released"
    """The scale of the alignment losses: `released` as in the authors' code, `paper` as printed, or `normalised` by the
    teacher's mean squared features, so that alpha has no unit."""
    taps: int = 4
    """How many layers are aligned: a number for which the network lists its taps."""
    tap_layers: str = ""
    """The aligned layers themselves, paths separated by commas, in place of the network's own."""
    cross_validated: str = ""
    """What a sweep has chosen by cross-validation, such as `alpha`: its values do not tell runs apart in tables."""
    methods: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {name: dict(method.settings) for name, method in METHODS.items()}
    )
    """Each method's settings by its name: `alpha`, `beta`, `weight_decay` and its own."""

    dtype: str = "auto"
    """Of the activations: `float32`, `bfloat16`, or `auto` (bfloat16 on GPU and TPU, float32 on CPU)."""
    parallel: str = "jit"
    """How a batch is shared out to all devices: `jit` (sharded over a mesh) or `pmap` (the step of one device, mapped).
    BatchNorm sees the whole batch in both."""
    accumulate: int = 1
    """Into how many parts a batch is cut, one after the other on the devices. BatchNorm sees each part by itself, and
    its running averages move once a part; `bss` sees the singular values of each part."""
    remat: bool = False
    """Keep of the forward pass what convolutions put out, and compute the rest anew for the backward pass: about a
    quarter of the memory for activations, a few percent more work."""
    eval_batch_size: int = 256
    eval_every: int = 0
    """Steps between evaluations on the test split; 0 evaluates at the end of each stage only."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the end of each stage is always kept."""
    keep_checkpoints: int = 2
    log_every: int = 50
    """Steps between lines in the journal."""

    @property
    def recipes(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.recipe.split(","))


def fold(data: Data) -> tuple[int, int] | None:
    """(k, n) of `k/n`.

    Raises:
      UserError: it is not of that form.
    """
    if not data.fold:
        return None
    k, _, n = data.fold.partition("/")
    if not (k.isdecimal() and n.isdecimal() and int(n) >= 2 and 1 <= int(k) <= int(n)):
        raise UserError(f"config.data.fold is {data.fold!r}; it must be like 2/5, the second of five parts.")
    return int(k), int(n)


def false_accept_rates(e: Experiment) -> tuple[float, ...]:
    """Those of `fars`.

    Raises:
      UserError: one is no rate, or none is given.
    """
    try:
        rates = tuple(float(part) for part in e.fars.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate < 1 for rate in rates) or len(set(rates)) < len(rates):
        raise UserError(f"config.fars is {e.fars!r}; it must be different rates between 0 and 1, as 1e-5,1e-6 are.")
    return rates


def image_sizes(e: Experiment) -> tuple[int, int]:
    """(side of the crop, side of the resized image) in pixels."""
    network = NETWORKS[e.network]
    return e.data.image_size or network.image_size, e.data.resize or network.resize


def normalisation(e: Experiment) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel, for images scaled to [0, 1]."""
    network = NETWORKS[e.network]
    return NORMALISATIONS.get(e.source.normalisation, (network.mean, network.std))


# They change how a run is watched and kept, not its numbers, so a run may go on with others.
_NOT_THE_RUN = (
    *("seeds", "eval_batch_size", "checkpoint_every", "keep_checkpoints", "log_every", "cross_validated"),
    *("parallel", "remat"),  # but for rounding
)


def identity(experiment: Experiment) -> dict[str, Any]:
    """What makes a run of one recipe this run and no other: the settings on which its numbers depend."""
    settings = to_json(experiment)
    used = RECIPES[experiment.recipe].methods
    settings["methods"] = {name: settings["methods"][name] for name in used}
    if not experiment.loss.by_angle:
        del settings["loss"]
    if not find(experiment.data.name).verified:
        del settings["fars"], settings["data"]["held_out"]
    return {key: value for key, value in settings.items() if key not in _NOT_THE_RUN}


def to_json(settings: Any) -> Any:
    """The settings of an experiment, or of a part of one, as plain dictionaries."""
    if isinstance(settings, Mapping):
        return {key: to_json(value) for key, value in settings.items()}
    if dataclasses.is_dataclass(settings):
        return {f.name: to_json(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    return settings
