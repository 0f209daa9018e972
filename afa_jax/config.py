"""The door for settings: a config file's are checked here, and wrong ones refused.

A config file has `get_config()`, which starts from `default()` and overrides what it needs.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from flax.core import FrozenDict
from ml_collections import ConfigDict

from afa_jax.data.catalog import find
from afa_jax.data.dataset import AUGMENTATIONS
from afa_jax.errors import UserError, nearest
from afa_jax.models.network import NORMALISATIONS
from afa_jax.models.zoo import NETWORKS
from afa_jax.settings import Experiment, false_accept_rates, fold, image_sizes
from afa_jax.training.identification import LOSSES
from afa_jax.training.parallel import WRAPPERS
from afa_jax.transfer.losses import CONVENTIONS
from afa_jax.transfer.methods import METHODS
from afa_jax.transfer.recipes import RECIPES, SCHEDULES


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
    false_accept_rates(e)
    _known("loss.name", e.loss.name, LOSSES)
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
        "data.held_out": (e.data.held_out, 0, _LARGE),
        "loss.margin": (e.loss.margin, 0, 3),
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
    if not (e.loss.scale > 0 and math.isfinite(e.loss.scale)):
        raise UserError(f"config.loss.scale is {e.loss.scale}; it must be above 0: ArcFace's is 64.")
    if e.schedule == "exponential" and not e.drop > 0:
        raise UserError("config.drop is 0, to which no exponential schedule falls; set it above 0.")
    size, resize = image_sizes(e)
    if size > resize:
        raise UserError(f"data.image_size is {size}, larger than data.resize, {resize}, from which it is cropped.")


def _known(key: str, value: str, known: Any) -> None:
    known = list(known)
    if value not in known:
        raise UserError(f"config.{key} is {value!r}, which does not exist; {nearest(value, known)}")
