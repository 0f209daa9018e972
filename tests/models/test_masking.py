"""Channels that are left out: which convolutions read one of them alone, and that the short cut changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afa_jax.models import zoo
from afa_jax.models.masking import channel_readers, masked
from afa_jax.training.prepare import _masks, filter_parts
from afa_jax.transfer.method import Anatomy

# What comes right behind each tap, by the networks' structure.
READERS = {
    "resnet50": {
        "layer1.2.conv3": {"layer2.0.conv1", "layer2.0.downsample.0"},
        "layer3.5.conv3": {"layer4.0.conv1", "layer4.0.downsample.0"},
        "layer3.2.conv3": {"layer3.3.conv1"},  # the next block has no convolution beside it
        "layer4.2.conv3": set(),  # the head comes next
        "layer1.2.conv1": set(),  # a 3×3 convolution comes next
    },
    "resnet10_small": {"layer1.0.conv2": {"layer2.0.downsample.0"}},
    "mobilenet_v2": {"features.5.conv.2": {"features.6.conv.0.0"}, "features.17.conv.2": {"features.18.0"}},
    "inception_v3_no_aux": {"Mixed_5d": {"Mixed_6a.branch3x3dbl_1.conv"}},
}
CASES = [(network, tap) for network, taps in READERS.items() for tap in taps]


def setting(network, tap):
    spec, module = zoo.NETWORKS[network], zoo.create(network, 7)
    size = 75 if network.startswith("inception") else 32
    variables = zoo.initialise(module, jax.random.key(0), size)
    # Statistics of a network that has been trained.
    noise = iter(jax.random.split(jax.random.key(1), 1000))
    stats = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.uniform(next(noise), leaf.shape), variables["batch_stats"]
    )
    variables = {**variables, "batch_stats": stats}
    anatomy = Anatomy(spec.head, spec.heads, spec.embedding or spec.head, spec.filters)
    shapes = zoo.layer_shapes(module, size)
    parts = filter_parts(anatomy, shapes, tap)
    channels = shapes[tap][-1]
    return module, variables, size, channels, lambda mask: _masks(parts, mask)


@pytest.mark.parametrize(("network", "tap"), CASES)
def test_the_readers_of_a_tap(network, tap):
    module, variables, size, channels, masks = setting(network, tap)
    found = channel_readers(module, variables, size, masks, channels)
    assert found == READERS[network][tap]


@pytest.mark.parametrize(("network", "tap"), CASES)
def test_the_short_cut_changes_nothing(network, tap):
    module, variables, size, channels, masks = setting(network, tap)
    readers = channel_readers(module, variables, size, masks, channels)
    images = jax.random.normal(jax.random.key(2), (2, size, size, 3))

    @jax.jit
    def both(mask):
        left_out = jnp.argmin(mask)
        plain = masked(module, variables, images, masks(mask))
        return plain, masked(module, variables, images, masks(mask), readers=readers, channel=left_out)

    untouched = zoo.forward(module, variables, images).logits
    moved = []
    for channel in (None, 0, channels // 2, channels - 1):
        mask = jnp.ones(channels) if channel is None else jnp.ones(channels).at[channel].set(0)
        plain, short = both(mask)
        scale = float(abs(plain).max())
        np.testing.assert_allclose(short, plain, atol=2e-6 * scale)
        moved.append(float(abs(plain - untouched).max()) / scale)
    assert moved[0] < 2e-6 and max(moved[1:]) > 2e-5  # a channel that is left out is noticed
