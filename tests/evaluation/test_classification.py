"""Evaluation: exact for every batch size, from logits that are known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afa_jax.data.augment import Preprocess
from afa_jax.data.dataset import Split
from afa_jax.evaluation.classification import evaluate
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
    assert result["loss"] == pytest.approx((5 * (normaliser - 2) + 11 * normaliser) / 16, rel=1e-6)
    assert result["count"] == 16


def test_the_network_is_used_in_eval_mode_and_the_batch_size_does_not_matter():
    batch = tiny.batch(11)
    split = Split(batch["image"], batch["label"])
    plain = Preprocess(tiny.SIZE, flip=True, mean=(0.5,) * 3, std=(0.5,) * 3)
    results = [evaluate(tiny.TinyNet(3), tiny.variables(), split, plain, size) for size in (1, 4, 11, 32)]
    for result in results[1:]:
        assert result["top1"] == results[0]["top1"]
        assert result["loss"] == pytest.approx(results[0]["loss"], rel=1e-6)


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
    assert result["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert result["top1"] == pytest.approx((logits.argmax(1) == labels).mean())
