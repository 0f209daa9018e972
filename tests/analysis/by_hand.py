"""What the analyses are held to: checkpoints read with Orbax alone, and the attentive modules in NumPy."""

import jax
import numpy as np
import orbax.checkpoint as ocp

from afa_jax.models import zoo


def checkpoint(folder, stage, step):
    """The target's variables and the attention of a checkpoint, in NumPy."""
    path = folder / "checkpoints" / stage / str(step) / "state"
    metadata = ocp.StandardCheckpointer().metadata(path)
    template = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), metadata.item_metadata.tree)
    state = ocp.StandardCheckpointer().restore(path.absolute(), template)
    return {"params": state["params"]["target"], "batch_stats": state["batch_stats"]}, state["params"]["attention"]


def features(variables, images, taps, network="resnet10_small"):
    """Of uint8 crops, by a network of that many classes as its head has."""
    entry = zoo.NETWORKS[network]
    seen = ((images / np.float32(255) - np.array(entry.mean)) / np.array(entry.std)).astype(np.float32)
    classes = variables["params"]["fc"]["kernel"].shape[-1]
    module = zoo.create(network, classes)
    outputs = jax.jit(lambda variables, seen: zoo.forward(module, variables, seen, taps=taps))(variables, seen)
    return {tap: np.asarray(value, np.float64) for tap, value in outputs.features.items()}, np.asarray(outputs.logits)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def spatial(parameters, features):
    """AFA eq. 5: `[P, H, W, C]` to `[P, H·W]`."""
    first, second = parameters["Dense_0"], parameters["Dense_1"]
    x = np.maximum(features.mean(-1).reshape(len(features), -1) @ first["kernel"], 0)
    return softmax(x @ second["kernel"] + second["bias"])


def channel(parameters, features):
    """AFA eq. 7: `[P, H, W, C]` to `[P, C]`."""
    flat = features.reshape(len(features), -1, features.shape[-1]).swapaxes(1, 2)
    x = np.maximum(flat @ parameters["Dense_0"]["kernel"], 0)
    return softmax((x @ parameters["Dense_1"]["kernel"])[..., 0] + parameters["bias"])
