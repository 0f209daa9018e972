"""What an experiment is: every setting with its default, and the door at which wrong ones are refused.

A config file has `get_config()`, which starts from `default()` and overrides what it needs. Beyond the door the
settings are frozen dataclasses, so that nothing changes them on the way.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flax.core import FrozenDict
from ml_collections import ConfigDict

from afa_jax.data.catalog import find
from afa_jax.data.dataset import AUGMENTATIONS
from afa_jax.errors import UserError, nearest
from afa_jax.models.network import NORMALISATIONS
from afa_jax.models.zoo import NETWORKS
from afa_jax.training.parallel import WRAPPERS
from afa_jax.transfer.losses import CONVENTIONS
from afa_jax.transfer.methods import METHODS
from afa_jax.transfer.recipes import RECIPES, SCHEDULES


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


def default() -> Any:
    """Every setting at its default, as the ConfigDict that config files and flags override.

    It is typed Any because the attributes of a ConfigDict are known at run time only.
    """
    return ConfigDict(dataclasses.asdict(Experiment())).lock()


def known_keys(config: ConfigDict | None = None, prefix: str = "") -> list[str]:
    """The dotted names of all settings."""
    keys = []
    for key, value in (default() if config is None else config).items():
        keys += known_keys(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [prefix + key]
    return keys


def settle(config: ConfigDict) -> Experiment:
    """Checks every key and value of `config` and freezes them.

    Raises:
      UserError: an unknown key, a value of the wrong type or outside its range, or a name that does not exist.
    """
    experiment = _build(Experiment, config.to_dict(), "")
    experiment = dataclasses.replace(experiment, recipe=",".join(experiment.recipes))
    _check(experiment)
    return experiment


def _build(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
    _refuse_unknown(values, (f.name for f in dataclasses.fields(kind)), prefix)
    standard = kind()
    settled = {}
    for key, value in values.items():
        model = getattr(standard, key)
        if dataclasses.is_dataclass(model):
            settled[key] = _build(type(model), value, f"{prefix}{key}.")
        elif isinstance(model, Mapping):
            settled[key] = _like(model, value, f"{prefix}{key}.")
        else:
            settled[key] = _typed(model, value, prefix + key)
    return kind(**settled)


def _like(model: Mapping[str, Any], values: Mapping[str, Any], prefix: str) -> FrozenDict:
    _refuse_unknown(values, model, prefix)
    return FrozenDict(
        {
            key: _like(standard, values.get(key, {}), f"{prefix}{key}.")
            if isinstance(standard, Mapping)
            else _typed(standard, values.get(key, standard), prefix + key)
            for key, standard in model.items()
        }
    )


def _refuse_unknown(values: Any, known: Any, prefix: str) -> None:
    known = list(known)
    if not isinstance(values, Mapping):
        raise UserError(f"config.{prefix.rstrip('.')} must hold settings, not {values!r}.")
    for key in values:
        if key not in known:
            raise unknown_key(prefix + key)


def unknown_key(key: str) -> UserError:
    """The refusal of a setting that does not exist, with the near ones."""
    return UserError(f"There is no setting config.{key}; {nearest(key, known_keys())}")


def _typed(standard: Any, value: Any, key: str) -> Any:
    kind = type(standard)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"config.{key} is {value!r}; it must be of type {kind.__name__}, as {standard!r} is.")
    return value


_LARGE = 10**8  # steps and batch sizes beyond it are slips of the keyboard


def _check(e: Experiment) -> None:
    find(e.data.name)
    fold(e.data)
    _known("data.augmentation", e.data.augmentation, AUGMENTATIONS)
    _known("network", e.network, NETWORKS)
    _known("convention", e.convention, CONVENTIONS)
    _known("source.normalisation", e.source.normalisation, ("network", *NORMALISATIONS))
    _known("schedule", e.schedule, SCHEDULES)
    _known("dtype", e.dtype, ("auto", "float32", "bfloat16"))
    _known("parallel", e.parallel, WRAPPERS)
    for name in e.recipes:
        _known("recipe", name, RECIPES)
    if len(set(e.recipes)) < len(e.recipes):
        raise UserError(f"config.recipe names a recipe twice: {e.recipe}.")
    if e.source.weights == "train":
        find(e.source.dataset)
    if not any(layer.strip() for layer in e.tap_layers.split(",")):
        _known("taps", str(e.taps), map(str, NETWORKS[e.network].taps))

    positive = ("batch_size", "accumulate", "eval_batch_size", "checkpoint_every", "log_every", "seeds")
    longest = max(math.ceil(1 / min(leg.share for leg in RECIPES[name].legs)) for name in e.recipes)
    ranges: dict[str, tuple[float, float, float]] = {
        **{key: (getattr(e, key), 1, _LARGE) for key in positive},
        "steps": (e.steps, longest, _LARGE),
        # One to go on from, and one before it in case that is damaged.
        "keep_checkpoints": (e.keep_checkpoints, 2, _LARGE),
        "eval_every": (e.eval_every, 0, math.inf),
        "seed": (e.seed, 0, 2**32 - 1),
        "learning_rate": (e.learning_rate, 0, math.inf),
        "head_rate": (e.head_rate, 0, math.inf),
        "attention_rate": (e.attention_rate, 0, math.inf),
        "drop": (e.drop, 0, 1),
        "drop_after": (e.drop_after, 0, 1),
        "momentum": (e.momentum, 0, 1),
        "data.per_class": (e.data.per_class, 0, math.inf),
        "data.image_size": (e.data.image_size, 0, 2048),
        "data.resize": (e.data.resize, 0, 2048),
        "data.test_fraction": (e.data.test_fraction, 0, 1),
        "source.steps": (e.source.steps, 1, _LARGE),
        "source.batch_size": (e.source.batch_size, 1, _LARGE),
        "source.learning_rate": (e.source.learning_rate, 0, math.inf),
    }
    for method, settings in e.methods.items():
        for key, value in settings.items():
            if not isinstance(value, str):
                ranges[f"methods.{method}.{key}"] = (value, METHODS[method].least.get(key, 0), math.inf)
    for key, (value, low, high) in ranges.items():
        if not (low <= value <= high and math.isfinite(value)):
            limit = f"at least {low}" if high == math.inf or value < low else f"between {low} and {high}"
            raise UserError(f"config.{key} is {value}; it must be {limit}.")
    if e.schedule == "exponential" and not e.drop > 0:
        raise UserError("config.drop is 0, to which no exponential schedule falls; set it above 0.")
    size, resize = image_sizes(e)
    if size > resize:
        raise UserError(f"data.image_size is {size}, larger than data.resize, {resize}, from which it is cropped.")


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


def image_sizes(e: Experiment) -> tuple[int, int]:
    """(side of the crop, side of the resized image) in pixels."""
    network = NETWORKS[e.network]
    return e.data.image_size or network.image_size, e.data.resize or network.resize


def normalisation(e: Experiment) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel, for images scaled to [0, 1]."""
    network = NETWORKS[e.network]
    return NORMALISATIONS.get(e.source.normalisation, (network.mean, network.std))


def _known(key: str, value: str, known: Any) -> None:
    known = list(known)
    if value not in known:
        raise UserError(f"config.{key} is {value!r}, which does not exist; {nearest(value, known)}")


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
    return {key: value for key, value in settings.items() if key not in _NOT_THE_RUN}


def to_json(settings: Any) -> Any:
    """The settings of an experiment, or of a part of one, as plain dictionaries."""
    if isinstance(settings, Mapping):
        return {key: to_json(value) for key, value in settings.items()}
    if dataclasses.is_dataclass(settings):
        return {f.name: to_json(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    return settings
