"""Attentive Feature Alignment in JAX: fine-tune on few labels and keep what the source network knows."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each name is: it is imported when it is asked for, so that `import afa_jax` takes no time.
_PLACES = {
    **dict.fromkeys(("Arrays", "Result", "finetune", "load", "table"), "api"),
    "Classifier": "inference.classifier",
    "Network": "models.network",
    "Preprocess": "data.augment",
    "UserError": "errors",
    "make_train_step": "training.own_loop",
    "register": "models.own",
    **dict.fromkeys(("ChannelAttention", "SpatialAttention"), "transfer.attention"),
    **dict.fromkeys(
        ("channel_alignment", "delta_alignment", "direct_alignment", "spatial_alignment"), "transfer.losses"
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'afa_jax' has no attribute {name!r}")
    return getattr(import_module(f"afa_jax.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
