"""What `test_parallel` compares, computed on eight devices; started in a process of its own, it writes JSON."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from afa_jax.config import settle
from afa_jax.experiment import run
from afa_jax.models.normalization import BatchNorm
from afa_jax.training.journal import read_metrics
from afa_jax.training.parallel import STOP, WRAPPERS, Devices
from afa_jax.training.step import init_state
from afa_jax.transfer.method import Frozen, no_constants
from afa_jax.transfer.methods import METHODS
from tests import tiny

CASES = [*((name, 1) for name in METHODS), ("ast", 2), ("bss", 2), ("soft_ft", 2)]


class Dropping(nn.Module):
    """`tiny.TinyNet` with the zoo's own BatchNorm, and dropout before its head."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), use_bias=False, name="conv1")(x)
        x = nn.relu(BatchNorm(use_running_average=not train, momentum=0.9, name="bn1")(x))
        x = nn.relu(nn.Conv(5, (3, 3), strides=2, use_bias=False, name="conv2")(x)).mean((1, 2))
        return nn.Dense(self.num_classes, name="fc")(nn.Dropout(0.5, deterministic=not train)(x))


def steps(method, accumulate, wrapper, folder):
    """The losses of four steps and all parameters and statistics after them."""
    devices = Devices(wrapper)
    stage = tiny.stage(method, learning_rate=0.02)
    task = replace(tiny.task(stage), accumulate=accumulate, target=Dropping(3), teacher=Dropping(5))
    # Images larger than the crop, and mirrored: chance must be the same wherever an image lies.
    task = replace(task, preprocess=replace(task.preprocess, size=tiny.SIZE - 2, flip=True))
    frozen, batch = Frozen(teacher=tiny.variables(tiny.SOURCE_CLASSES, seed=7)), tiny.batch(16)
    if task.stage.method.prepare is not no_constants:
        first = replace(task, stage=tiny.stage(task.stage.method.first)) if task.stage.method.first else task
        attention = init_state(first, tiny.variables(), frozen, jnp.asarray(batch["image"]), jax.random.PRNGKey(1))
        frozen = tiny.frozen(task, folder / method, attention=attention.params["attention"])
    state = init_state(task, tiny.variables(), frozen, jnp.asarray(batch["image"]), jax.random.PRNGKey(0))
    state, frozen, step = devices.replicate(state), devices.replicate(frozen), devices.compile(task)
    spread = devices.spread({**batch, STOP: np.zeros(jax.local_device_count(), np.float32)})
    losses = []
    for _ in range(4):
        state, metrics = step(state, frozen, spread)
        losses.append({name: float(value) for name, value in metrics.items()})
    assert losses[-1].pop(STOP) == 0
    return losses, [np.asarray(x).ravel().tolist() for x in jax.tree.leaves((state.params, state.batch_stats))]


def main(what, folder):
    results = {"devices": jax.device_count()}
    for wrapper in WRAPPERS:
        if what == "runs":
            run(settle(tiny.config(eval_every=2, parallel=wrapper)), folder / wrapper)
            results[wrapper] = read_metrics(folder / wrapper / "metrics.jsonl")
        else:
            results |= {f"{m} {n} {wrapper}": steps(m, n, wrapper, folder / wrapper) for m, n in CASES}
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
