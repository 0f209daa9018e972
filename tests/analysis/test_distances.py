"""Filter distances against NumPy, and the stages of every network."""

import numpy as np
import pytest

from afa_jax.analysis.distances import FEW, distances, filter_distances, stages
from afa_jax.models import weights, zoo


def test_a_filter_is_the_slice_along_the_last_axis():
    start = {
        "conv": {"kernel": np.zeros((3, 3, 2, 2))},
        "fc": {"kernel": np.zeros((4, 5))},
        "bn": {"scale": np.ones(2)},
    }
    end = {"conv": {"kernel": np.zeros((3, 3, 2, 2))}, "fc": {"kernel": np.ones((4, 5))}, "bn": {"scale": np.zeros(2)}}
    end["conv"]["kernel"][0, 0, :, 1] = [3, 4]
    (path,) = made = filter_distances(start, end)
    assert path == "conv"
    np.testing.assert_allclose(made["conv"], [0, 5])


def test_those_of_a_run_equal_numpy(trained, finished):
    before = trained.start.variables["params"]
    after = weights.load("resnet10_small", finished / "model")["params"]
    told = distances(trained)["stages"]
    assert list(told) == ["conv1", "layer1", "layer2", "layer3", "layer4"]
    kernels = [("0", "conv1"), ("0", "conv2"), ("0", "downsample", "0")]
    values = []
    for path in kernels:
        a, b = before["layer3"], after["layer3"]
        for part in path:
            a, b = a[part], b[part]
        moved = np.asarray(b["kernel"], float) - np.asarray(a["kernel"], float)
        values += [np.linalg.norm(moved[..., c]) for c in range(moved.shape[-1])]
    assert told["layer3"]["filters"] == len(values) == 192
    expected = [np.quantile(values, q / 100) for q in range(101)]
    np.testing.assert_allclose(told["layer3"]["quantiles"], expected, rtol=1e-6)
    assert told["layer3"]["quantiles"][100] > 0


EXPECTED = {
    "resnet50": ["conv1", "layer1", "layer2", "layer3", "layer4"],
    "mobilenet_v2": ["features.0–1", "features.2–3", "features.4–6", "features.7–13", "features.14–18"],
    "inception_v3": [
        *("Conv2d_1a_3x3", "Conv2d_2a_3x3–Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
        *("Mixed_5b–Mixed_5d", "Mixed_6a–Mixed_6e", "Mixed_7a–Mixed_7c", "AuxLogits"),
    ],
}


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_every_network_has_few_stages_and_every_convolution_one(name):
    module, size = zoo.create(name, 5), zoo.NETWORKS[name].image_size
    resolution = {layer: s[1] for layer, s in zoo.layer_shapes(module, size).items() if len(s) == 4}
    convolutions = sorted(zoo.kernels(module, size))
    made = stages(convolutions, resolution)
    assert set(made) == set(convolutions)
    assert len(set(made.values())) <= FEW
    if name in EXPECTED:
        assert list(dict.fromkeys(made.values())) == EXPECTED[name]
