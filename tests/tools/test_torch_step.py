"""PyTorch's step aligns features as ours does, which its speed is compared with."""

import importlib.util

import jax
import numpy as np
import pytest

from afa_jax.transfer.attention import ChannelAttention, SpatialAttention
from afa_jax.transfer.losses import channel_alignment, delta_alignment, spatial_alignment

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("torch") and importlib.util.find_spec("torchvision")), reason="needs torch"
)
TARGET, TEACHER = np.random.default_rng(0).normal(size=(2, 3, 5, 5, 6)).astype(np.float32)


def theirs(module):
    import torch

    features = (torch.from_numpy(np.moveaxis(x, -1, 1).copy()) for x in (TARGET, TEACHER))
    return module(*features).detach().numpy()


def put(parameter, array):
    import torch

    assert parameter.shape == array.shape
    parameter.data = torch.from_numpy(np.array(array))


def made(module):
    """Its parameters, none of them zero, and the attention that they give."""
    params = module.init(jax.random.key(0), TEACHER)["params"]
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    return params, module.apply({"params": params}, TEACHER)


def test_by_position():
    import torch_step

    params, attention = made(SpatialAttention())
    module = torch_step.Spatial(5, 5, 6)
    put(module.scores[0].weight, params["Dense_0"]["kernel"].T)
    put(module.scores[2].weight, params["Dense_1"]["kernel"].T)
    put(module.scores[2].bias, params["Dense_1"]["bias"])
    np.testing.assert_allclose(theirs(module), spatial_alignment(TARGET, TEACHER, attention), rtol=1e-5)


def test_by_channel():
    import torch_step

    params, attention = made(ChannelAttention())
    module = torch_step.Channel(5, 5, 6)
    put(module.scores[0].weight, params["Dense_0"]["kernel"].T)
    put(module.scores[2].weight, params["Dense_1"]["kernel"].T)
    put(module.bias, params["bias"])
    np.testing.assert_allclose(theirs(module), channel_alignment(TARGET, TEACHER, attention), rtol=1e-5)


def test_by_fixed_channel_weights():
    import torch_step

    equal = np.full(6, 1 / 6, np.float32)
    np.testing.assert_allclose(theirs(torch_step.Fixed(5, 5, 6)), delta_alignment(TARGET, TEACHER, equal), rtol=1e-5)
