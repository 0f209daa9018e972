"""Evaluation: exact for every batch size, from logits that are known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afa_jax.data.augment import Preprocess
from afa_jax.data.dataset import Split
from afa_jax.evaluation.classification import Aligned, evaluate
from afa_jax.models import zoo
from afa_jax.transfer.methods import METHODS
from tests import tiny


class FirstPixel(nn.Module):
    """Says the class that is written in the first pixel's red, with logits 2 and 0."""

    @nn.compact
    def __call__(self, x, train=False):
        return 2 * jax.nn.one_hot((255 * x[:, 0, 0, 0]).round().astype(jnp.int32), 3)


PLAIN = Preprocess(4, flip=False, mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16, 100])
def test_accuracy_and_loss_are_exact(batch_size):
    said = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0], np.uint8)
    labels = np.array([0, 1, 1, 1, 1, 0, 0, 2, 2, 1, 0, 1, 2, 2, 0, 1], np.int32)
    images = np.zeros((16, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = said
    result = evaluate(FirstPixel(), {}, Split(images, labels), PLAIN, batch_size)
    right = int((said == labels).sum())
    assert right == 5
    assert result["top1"] == 5 / 16
    normaliser = np.log(np.exp(2) + 2)
    assert result["cross_entropy"] == pytest.approx((5 * (normaliser - 2) + 11 * normaliser) / 16, rel=1e-6)
    assert result["count"] == 16


def test_the_network_is_used_in_eval_mode_and_the_batch_size_does_not_matter():
    batch = tiny.batch(11)
    split = Split(batch["image"], batch["label"])
    plain = Preprocess(tiny.SIZE, flip=True, mean=(0.5,) * 3, std=(0.5,) * 3)
    results = [evaluate(tiny.TinyNet(3), tiny.variables(), split, plain, size) for size in (1, 4, 11, 32)]
    for result in results[1:]:
        assert result["top1"] == results[0]["top1"]
        assert result["cross_entropy"] == pytest.approx(results[0]["cross_entropy"], rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_ten_crop_logits_are_the_mean_over_the_crops(batch_size):
    """The five crops say classes of their own, and so do their mirror images; the mean decides."""
    random = np.random.default_rng(1)
    crops = np.zeros((7, 5, 4, 4, 3), np.uint8)
    crops[:, :, 0, [0, -1], 0] = random.integers(0, 3, (7, 5, 2))
    labels = random.integers(0, 3, 7).astype(np.int32)
    said = crops[:, :, 0, [0, -1], 0].reshape(7, 10)
    logits = 2 * np.eye(3)[said].mean(1)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(7), labels]
    flipping = Preprocess(4, flip=True, mean=(0.0,) * 3, std=(1.0,) * 3)
    result = evaluate(FirstPixel(), {}, Split(crops, labels), flipping, batch_size)
    assert result["cross_entropy"] == pytest.approx(losses.mean(), rel=1e-5)
    assert result["top1"] == pytest.approx((logits.argmax(1) == labels).mean())


def without_head(variables):
    return jax.tree.leaves({name: layer for name, layer in variables["params"].items() if name != "fc"})


@pytest.mark.parametrize("batch_size", [3, 11])
@pytest.mark.parametrize("method", ["dfa", "l2_sp", "l2"])
def test_the_total_loss_of_test_images_is_that_of_training_in_eval_mode(method, batch_size, tmp_path):
    """By hand: ½·Σ D² an image times the training batch for `dfa` (released), ½·‖W − W⁰‖² for `l2_sp`."""
    task, made = tiny.task(tiny.stage(method)), tiny.batch(11)
    split = Split(made["image"], made["label"])
    target, teacher = tiny.variables(seed=1), tiny.variables(tiny.SOURCE_CLASSES, seed=7)
    aligned = Aligned(task, {}, tiny.frozen(task, tmp_path, teacher), images=4)
    result = evaluate(task.target, target, split, task.preprocess, batch_size, aligned)
    plain = evaluate(task.target, target, split, task.preprocess, batch_size)

    def features(network, variables):
        images = jnp.asarray(made["image"], jnp.float32) / 255
        return jax.tree.leaves(zoo.forward(network, variables, images, taps=task.stage.taps).features)

    def half_distance(one, other):
        return 0.5 * sum(float(((a - b) ** 2).sum()) for a, b in zip(one, other, strict=True))

    expected = {
        "dfa": 4 * half_distance(features(task.target, target), features(task.teacher, teacher)) / 11,
        "l2_sp": half_distance(without_head(target), without_head(teacher)),
        "l2": 0.0,
    }[method]
    head = 0.5 * sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(target["params"]["fc"]))
    assert plain == {key: result[key] for key in ("top1", "cross_entropy", "count")}
    assert result["alignment"] == pytest.approx(expected, rel=1e-5)
    assert result["loss"] == pytest.approx(plain["cross_entropy"] + 0.3 * expected + 0.2 * head, rel=1e-5)


def test_methods_that_look_at_more_than_a_test_image_has_are_left_out():
    without = {name for name, method in METHODS.items() if not method.has_test_penalty}
    assert without == {"lwf", "soft_ft", "co_tuning", "bss"}
