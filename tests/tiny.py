"""A network, a task and an experiment that are small enough to look through."""

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from afa_jax.config import default
from afa_jax.data.augment import Preprocess
from afa_jax.data.dataset import Split
from afa_jax.models import zoo
from afa_jax.models.network import HALF, Network
from afa_jax.training.objective import Task
from afa_jax.training.optimizer import Sgd
from afa_jax.training.prepare import prepare
from afa_jax.transfer.method import Anatomy, Frozen
from afa_jax.transfer.methods import METHODS
from afa_jax.transfer.recipes import Stage

SIZE, CLASSES, SOURCE_CLASSES = 6, 3, 5


class TinyNet(nn.Module):
    """Two convolutions, one BatchNorm, a head; `[B, 6, 6, 3]` to `[B, num_classes]`."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), use_bias=False, name="conv1")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn1")(x))
        x = nn.Conv(5, (3, 3), strides=2, use_bias=False, name="conv2")(x)
        return nn.Dense(self.num_classes, name="fc")(nn.relu(x).mean((1, 2)))


class FourConvs(nn.Module):
    """What a run needs of a network and no more, so that its steps are compiled in no time."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        for i, (width, stride) in enumerate(((8, 1), (8, 2), (16, 1), (16, 2)), 1):
            x = nn.Conv(width, (3, 3), strides=stride, use_bias=False, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype, name=f"bn{i}")(x)
            x = nn.relu(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x.mean((1, 2))).astype(jnp.float32)


NETWORK = "four_convs"
zoo.NETWORKS[NETWORK] = Network(
    FourConvs, image_size=32, resize=36, taps={4: ("conv1", "conv2", "conv3", "conv4")}, mean=HALF, std=HALF
)


def stage(method="ast", **changes):
    """A stage of `method` with large weights of each term, so that none of them hides."""
    settings = dict(METHODS[method].settings) | {
        "alpha": 0.3,
        "beta": 0.2,
        "weight_decay": 0.1,
        "convention": "released",
    }
    settings |= {key: changes.pop(key) for key in tuple(changes) if key in settings}
    values = {"steps": 10, "learning_rate": 0.1, "drop_at": 7, "drop": 0.1, "taps": ("conv1", "conv2"), **changes}
    return Stage(METHODS[method], settings=FrozenDict(settings), **values)


def task(stage, **sgd):
    plain = Preprocess(SIZE, flip=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Task(TinyNet(CLASSES), TinyNet(SOURCE_CLASSES), Anatomy("fc", ("fc",), "fc"), stage, plain, Sgd(**sgd))


def variables(classes=CLASSES, seed=0):
    """Random parameters and statistics; the BatchNorm is not at its start, where it hides mistakes."""
    made = TinyNet(classes).init(jax.random.key(seed), jnp.zeros((1, SIZE, SIZE, 3)))
    random = np.random.default_rng(seed)
    return {
        "params": {
            **made["params"],
            "bn1": {"scale": jnp.asarray(random.uniform(0.5, 2, 4), jnp.float32), "bias": jnp.ones(4) / 3},
        },
        "batch_stats": {
            "bn1": {"mean": jnp.asarray(random.normal(size=4), jnp.float32), "var": jnp.full(4, 2.5, jnp.float32)}
        },
    }


def batch(count=8, seed=0):
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8),
        "label": random.integers(0, CLASSES, count, np.int32),
        "index": random.permutation(count).astype(np.int32),
        "source": {
            "image": random.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8),
            "label": random.integers(0, SOURCE_CLASSES, count, np.int32),
        },
    }


def frozen(task, folder, teacher=None, attention=None, seed=0):
    """A teacher (of other weights than the target's unless one is given) and all that the method measures."""
    made = batch(20, seed=9)
    return prepare(
        task,
        Frozen(teacher=variables(SOURCE_CLASSES, seed=7) if teacher is None else teacher),
        Split(made["image"], made["label"]),
        before=variables(seed=5),
        attention=attention or {},
        seed=seed,
        file=Path(folder) / "constants.safetensors",
        tell=lambda sentence: None,
    )


def config(recipe="afa", **changes):
    """Letters to digits with few steps at 8×8 pixels; `changes` by dotted name."""
    made = default()
    small = {
        "network": NETWORK,
        "recipe": recipe,
        "data.per_class": 3,
        "data.image_size": 8,
        "data.resize": 8,
        "source.steps": 30,
        "source.batch_size": 16,
        "batch_size": 8,
        "steps": 8,
        "log_every": 1,
        "checkpoint_every": 2,
        "eval_batch_size": 1000,
        "methods.dfa.alpha": 1e-5,
        **{
            f"methods.{name}.alpha": 1e-4 for name in ("delta", "ast", "act", "afa_one_stage", "ast_fixed", "act_fixed")
        },
    }
    made.update_from_flattened_dict({**small, **changes})
    return made


def numbers(workdir):
    """A run's summary without what differs from day to day."""
    summary = json.loads((workdir / "summary.json").read_text())
    return {
        key: value
        for key, value in summary.items()
        if key not in ("train_images_per_second", "waiting_for_data_share", "finished", "command")
    }
