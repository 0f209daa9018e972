"""Every recipe on the quickstart's task, three seeds: printed letters → handwritten digits. Needs no network.

    python -m afa_jax.main --config configs/methods.py

Two CPU cores, about fifteen minutes. The alignment is in the normalised convention, with alpha = 1 for each method
alike; the other settings are the defaults. Nothing was tuned for this task. The result: docs/methods.md.
"""

from afa_jax.config import default
from afa_jax.transfer.method import Need
from afa_jax.transfer.methods import METHODS
from afa_jax.transfer.recipes import RECIPES


def get_config():
    config = default()
    config.network = "resnet10_small"
    config.data.name = "digits"
    config.data.per_class = 5
    config.data.image_size, config.data.resize = 16, 18
    config.source.weights, config.source.dataset = "train", "letters"
    config.recipe = ", ".join(RECIPES)
    config.seeds = 3
    config.batch_size = 50
    config.steps = 200
    config.eval_every = 100
    config.checkpoint_every = 100
    config.convention = "normalised"
    for name, method in METHODS.items():
        if Need.TEACHER_FEATURES in method.needs:
            config.methods[name].alpha = 1.0
    return config
