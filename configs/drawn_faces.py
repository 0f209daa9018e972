"""Drawn faces: from visible light to near infrared; other people are verified than are trained on. Needs no network.

    python -m afa_jax.main --config configs/drawn_faces.py

A source network for 128 drawn people by visible light, once, and a target for 32 others in near infrared, by ArcFace;
32 more are verified: 71,424 pairs of two people, so that a false accept rate of 1e-4 stands on seven. Alpha was set by
hand. Minutes on two CPU cores; the result to expect: docs/faces.md.
"""

from afa_jax.config import default


def get_config():
    config = default()
    config.network = "resnet10_small"
    config.data.name, config.data.held_out = "drawn_faces_infrared", 32
    config.data.image_size, config.data.resize = 24, 26
    config.source.weights, config.source.dataset = "train", "drawn_faces"
    config.source.steps, config.source.batch_size = 400, 32
    config.loss.name = "arcface"
    config.loss.scale, config.loss.margin = 16.0, 0.2
    config.fars = "1e-2,1e-3,1e-4"
    config.recipe = "l2, delta, afa"
    config.convention = "normalised"
    config.methods.delta.alpha = 0.1
    config.methods.ast.alpha = config.methods.act.alpha = 0.1
    config.seeds = 3
    config.batch_size = 32
    config.steps = 200
    config.log_every = 10
    config.checkpoint_every = 100
    return config
