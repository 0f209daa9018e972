"""What the zoo says of its networks: sizes, taps and heads, each against torchvision's counts and the released taps."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from afa_jax.errors import UserError
from afa_jax.models import networks, zoo
from afa_jax.models.network import spread_taps
from afa_jax.models.zoo import NETWORKS
from afa_jax.registry import collect

# (parameters without the head, its inputs). Published counts of LResNet34 have 512 weights more: those of its last
# BatchNorm, which are fixed at one and no parameters here.
FACES = {
    "mobilefacenet": (1_003_136, 128),
    "mobilefacenet_512": (1_200_512, 512),
    "lresnet34e_ir": (34_139_328 - 512, 512),
    "iresnet34": (34_139_328 - 512, 512),
}
# Parameters for 1,000 classes by torchvision's documentation; inception_v3's second head has 3,326,696 of its own. The
# small ResNet is ours.
PARAMETERS = {
    "resnet10_small": 436_536,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "inception_v3": 27_161_264,
    "inception_v3_no_aux": 27_161_264 - 3_326_696,
    "mobilenet_v2": 3_504_872,
    **{name: count + 1000 * (outputs + 1) for name, (count, outputs) in FACES.items()},
}
# (channels, side) at the four taps of the released code, at the network's own image size. None was released for faces:
# there it is the last convolution of each stage that is not followed by a nonlinearity.
RELEASED = {
    "resnet50": ((256, 56), (512, 28), (1024, 14), (2048, 7)),
    "resnet101": ((256, 56), (512, 28), (1024, 14), (2048, 7)),
    "inception_v3": ((192, 71), (288, 35), (768, 17), (2048, 8)),
    "inception_v3_no_aux": ((192, 71), (288, 35), (768, 17), (2048, 8)),
    "mobilenet_v2": ((32, 28), (64, 14), (96, 14), (320, 7)),
    **dict.fromkeys(("mobilefacenet", "mobilefacenet_512"), ((64, 28), (128, 14), (128, 14), (128, 7))),
    **dict.fromkeys(("lresnet34e_ir", "iresnet34"), ((64, 56), (128, 28), (256, 14), (512, 7))),
}


def test_all_networks_are_counted():
    assert PARAMETERS.keys() == collect(networks, "NETWORKS").keys() <= NETWORKS.keys()  # a test may add its own


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    shape = jax.ShapeDtypeStruct((1, *[NETWORKS[name].image_size] * 2, 3), jnp.float32)
    params = jax.eval_shape(zoo.create(name, 1000).init, jax.random.key(0), shape)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[name]
    heads = [".".join(str(part.key) for part in path[:-1]) for path, leaf in jax.tree.leaves_with_path(params)
             if leaf.shape[-1:] == (1000,)]  # fmt: skip
    assert Counter(heads) == {head: 2 for head in NETWORKS[name].heads}


@pytest.mark.parametrize("name", RELEASED)
def test_the_four_taps_are_those_of_the_released_code(name):
    spec = NETWORKS[name]
    shapes = zoo.layer_shapes(zoo.create(name, 10), spec.image_size)
    assert [shapes[tap] for tap in spec.taps[4]] == [(1, side, side, channels) for channels, side in RELEASED[name]]


@pytest.mark.parametrize("name", NETWORKS)
def test_more_taps_contain_the_four_in_the_networks_order(name):
    spec = NETWORKS[name]
    shapes = zoo.layer_shapes(zoo.create(name, 10), spec.image_size)
    for count, taps in spec.taps.items():
        assert len(set(taps)) == count and set(spec.taps[4]) <= set(taps)
        areas = [shapes[tap][1] * shapes[tap][2] for tap in taps]
        assert areas == sorted(areas, reverse=True)
        assert all(len(shapes[tap]) == 4 and shapes[tap][1] == shapes[tap][2] for tap in taps)
        for ends, begin in zip(spec.taps[4], [None, *spec.taps[4][:-1]], strict=True):  # as many in each part
            inside = taps[taps.index(begin) + 1 if begin else 0 : taps.index(ends) + 1]
            assert len(inside) == count // 4
    if name in RELEASED:  # the networks of Table 11's kind have all three counts
        assert set(spec.taps) == {4, 8, 12}


def test_the_four_taps_have_the_released_names():
    """Convolutions before their BatchNorm, but Inception's blocks after ReLU."""
    taps = {name: NETWORKS[name].taps[4] for name in RELEASED}
    third = {"resnet50": "layer3.5.conv3", "resnet101": "layer3.22.conv3"}
    for name, tap in third.items():
        assert taps[name] == ("layer1.2.conv3", "layer2.3.conv3", tap, "layer4.2.conv3")
    assert taps["inception_v3"] == ("Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c")
    assert taps["mobilenet_v2"] == tuple(f"features.{block}.conv.2" for block in (5, 9, 13, 17))
    assert taps["mobilefacenet"] == tuple(f"blocks.{block}.conv.6" for block in (4, 8, 11, 14))
    assert taps["lresnet34e_ir"] == tuple(f"stage{i}.unit{unit}.conv2" for i, unit in enumerate((3, 4, 6, 3), start=1))


def test_taps_are_spread_at_the_ends_of_halves_and_thirds():
    layers = [f"{part}{i}" for part in "abcd" for i in range(1, 7)]
    taps = spread_taps(layers, ["a6", "b6", "c6", "d6"])
    assert taps[8] == tuple(f"{part}{i}" for part in "abcd" for i in (3, 6))
    assert taps[12] == tuple(f"{part}{i}" for part in "abcd" for i in (2, 4, 6))
    assert set(spread_taps("abcdefgh", "bdfh")) == {4, 8}, "two layers a part are too few for twelve"


@pytest.mark.parametrize(("name", "size", "train", "least"), [
    ("inception_v3", 298, True, 299), ("inception_v3", 74, False, 75), ("inception_v3_no_aux", 74, True, 75),
])  # fmt: skip
def test_images_too_small_for_inception_are_refused_and_the_least_are_not(name, size, train, least):
    module = zoo.create(name, 3)
    init = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), init)

    def run(side):
        images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
        rngs = {"dropout": jax.random.key(0)}
        return jax.eval_shape(lambda v, x: zoo.forward(module, v, x, train=train, rngs=rngs), variables, images)

    with pytest.raises(UserError, match=f"at least {least} pixels: set data.image_size={least}"):
        run(size)
    assert run(least).logits.shape == (2, 3)
