"""One experiment on each network, written for both sides: seeded weights, statistics and images, a pass, a step.

Everything comes from NumPy's frozen generator, so PyTorch's side can be stored in kilobytes (`make_parity.py`) and
be run live where torch is installed.
"""

import zlib
from functools import cache
from pathlib import Path

import numpy as np

from afa_jax.models import convert, zoo

FOLDER = Path(__file__).parent / "parity"
# (side of the images, batch): small, with maps of several positions. Inception's second head needs the full size.
SIZES = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2"), (64, 4)),
    "inception_v3": (299, 2),
    **dict.fromkeys(("mobilefacenet", "lresnet34e_ir"), (112, 3)),
}
FACES = ("mobilefacenet", "lresnet34e_ir")
CLASSES, RATE = 7, 0.1


@cache
def state(name):
    """A `state_dict` with random weights *and* random BatchNorm statistics; each array by the seed of its key."""
    arrays = {}
    for key, (shape, _) in convert.torch_shapes(name, CLASSES).items():
        random = np.random.RandomState(zlib.crc32(key.encode()))
        if key.endswith("running_mean"):
            array = random.normal(0, 0.1, shape)
        elif key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
            array = random.uniform(0.5, 1.5, shape)
        elif key.endswith("bias"):
            array = random.normal(0, 0.1, shape)
        else:
            array = random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        arrays[key] = array.astype(np.float32)
    return arrays


def taps(name):
    """The four, and of the face networks the embedding."""
    return (*zoo.NETWORKS[name].taps[4], *(("head:input",) if name in FACES else ()))


def fixed_at_one(name):
    """Keys that a network's `state_dict` has in PyTorch and the case's not."""
    return zoo.NETWORKS[name].ones


def inputs(name):
    """(images [B, H, W, 3], labels [B])."""
    random = np.random.RandomState(1)
    size, batch = SIZES[name]
    return random.normal(size=(batch, size, size, 3)).astype(np.float32), np.arange(batch) % CLASSES


def sample(key, array, count=6):
    """A few of the array's numbers, the largest absolute one first: enough to notice any other array."""
    places = np.random.RandomState(zlib.crc32(key.encode())).randint(array.size, size=count)
    flat = np.asarray(array, np.float32).reshape(-1)
    return np.concatenate([[abs(flat).max()], flat[places]])


def condense(results):
    """What is stored of the results: logits whole; the rest as samples, a row each, in the order of their keys."""
    kept = {key: value for key, value in results.items() if "logits" in key}
    rows = [sample(key, value) for key, value in sorted(results.items()) if "logits" not in key]
    return {**kept, "samples": np.stack(rows)}
