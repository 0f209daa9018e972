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
    "mobilefacenet": {"blocks.8.conv.6": {"blocks.9.conv.0"}, "blocks.14.conv.6": {"conv2.conv"}},
    "lresnet34e_ir": {"stage1.unit3.conv2": {"stage2.unit1.conv1sc"}},
}
QUICK = (("resnet10_small", "layer1.0.conv2"), ("resnet50", "layer1.2.conv3"))
CASES = [
    pytest.param(network, tap, marks=() if (network, tap) in QUICK else pytest.mark.slow)
    for network, taps in READERS.items()
    for tap in taps
]


def setting(network, tap, dtype=jnp.float32):
    spec, module = zoo.NETWORKS[network], zoo.create(network, 7, dtype)
    size = 75 if network.startswith("inception") else 112 if spec.image_size == 112 else 32
    variables = zoo.initialise(module, jax.random.key(0), size)
    noise = iter(jax.random.split(jax.random.key(1), 1000))
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    # Variances of a network that has been trained; moved means could silence one of random weights.
    stats = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf * jax.random.uniform(next(noise), leaf.shape, minval=0.2) if "var" in str(path) else leaf
        ),
        variables["batch_stats"],
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


@pytest.mark.parametrize(
    ("network", "tap"),
    [
        ("resnet10_small", "layer1.0.conv2"),
        pytest.param("resnet50", "layer1.2.conv3", marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", "features.5.conv.2", marks=pytest.mark.slow),
        pytest.param("mobilefacenet", "blocks.8.conv.6", marks=pytest.mark.slow),
        pytest.param("inception_v3_no_aux", "Mixed_5d", marks=pytest.mark.slow),
    ],
)
def test_the_short_cut_changes_nothing(network, tap):
    """In float64, because in a network of random weights one channel moves little."""
    with jax.enable_x64(True):
        module, variables, size, channels, masks = setting(network, tap, jnp.float64)
        readers = channel_readers(module, variables, size, masks, channels)
        images = jax.random.normal(jax.random.key(2), (2, size, size, 3))

        @jax.jit
        def both(mask):
            plain = masked(module, variables, images, masks(mask))
            return plain, masked(module, variables, images, masks(mask), readers=readers, channel=jnp.argmin(mask))

        untouched = zoo.forward(module, variables, images).logits
        scale, moved = float(abs(untouched).max()), []
        for channel in (None, 0, channels // 2, channels - 1):
            mask = jnp.ones(channels) if channel is None else jnp.ones(channels).at[channel].set(0)
            plain, short = both(mask)
            np.testing.assert_allclose(short, plain, atol=1e-12 * scale)
            moved.append(float(abs(plain - untouched).max()) / scale)
        assert moved[0] < 1e-12 and max(moved[1:]) > 1e-10  # a channel that is left out is noticed
