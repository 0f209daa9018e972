"""The gap against an independent computation."""

from types import SimpleNamespace

import numpy as np
import pytest

from afa_jax.analysis.generalisation import generalisation
from afa_jax.errors import UserError
from afa_jax.models import weights
from tests.analysis import by_hand


def test_loss_and_top1_of_both_splits(trained, finished):
    told = generalisation(trained)
    variables = weights.load("resnet10_small", finished / "model")
    for name, split, count in (("train", trained.data.train, 30), ("test", trained.data.test, 1767)):
        logits = by_hand.features(variables, split.images[:], ())[1].astype(np.float64)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(count), split.labels]
        assert told[name]["loss"] == pytest.approx(losses.mean(), rel=1e-4)
        hits = (logits.argmax(1) == split.labels).sum()
        assert told[name]["top1"] == pytest.approx(hits / count, abs=1.5 / count)  # one tie at most
        assert told[name]["count"] == count
    assert told["gap"] == told["test"]["loss"] - told["train"]["loss"]


def test_identities_that_are_not_trained_on_have_no_gap():
    run = SimpleNamespace(
        data=SimpleNamespace(held_out=("a", "b")),
        experiment=SimpleNamespace(data=SimpleNamespace(name="identities")),
    )
    with pytest.raises(UserError, match=r"of 2 identities that are not trained on, .*: look at verification"):
        generalisation(run)
