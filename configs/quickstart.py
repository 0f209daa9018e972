"""Printed letters → handwritten digits, five labelled images a class, three seeds. Needs no network.

    python -m afa_jax.main --config configs/quickstart.py

Two CPU cores, about five minutes, of which the source network takes one, once. The result to expect: README.md.
"""

from afa_jax.config import default


def get_config():
    config = default()
    config.network = "resnet10_small"
    config.data.name = "digits"
    config.data.per_class = 5
    config.data.image_size, config.data.resize = 16, 18
    config.source.weights, config.source.dataset = "train", "letters"
    config.recipe = "scratch, l2, dfa, ast, act, afa"
    config.seeds = 3
    config.batch_size = 50
    config.steps = 200
    config.eval_every = 50
    config.log_every = 10
    config.checkpoint_every = 100
    # The features of this small network are far larger than an ImageNet ResNet's, and alpha smaller in their measure.
    config.methods.dfa.alpha = 1e-5
    config.methods.ast.alpha = 1e-4
    config.methods.act.alpha = 1e-4
    return config
