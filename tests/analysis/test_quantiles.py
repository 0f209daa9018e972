"""The streaming quantile against all values at once."""

import numpy as np
import pytest

from afa_jax.analysis.quantiles import Histogram


@pytest.mark.parametrize("order", ["shuffled", "rising", "falling"])
def test_within_four_bins_of_the_exact_one_in_any_order(order):
    random = np.random.default_rng(0)
    values = np.stack([random.normal(size=20000), 50 + 1e-3 * random.exponential(size=20000)], 1)
    if order != "shuffled":
        values = np.sort(values, 0)[:: 1 if order == "rising" else -1]
    histogram = Histogram(2)
    for part in np.array_split(values, 37):
        histogram.add(part)
    found, exact = histogram.exceeded_by(0.005), np.quantile(values, 0.995, axis=0, method="higher")
    width = 4 * np.ptp(values, axis=0) / 4096
    assert (np.abs(found - exact) <= width).all()
    assert ((values > found).mean(0) <= 0.005).all()


def test_what_mostly_gives_one_value_does_not_exceed_its_threshold_there():
    values = np.zeros((1000, 3))
    values[500:502, 1] = [3.0, 5.0]  # the first batch has nothing of it
    values[:, 2] = 7.0
    values[990, 2] = -2.0
    histogram = Histogram(3, bins=64)
    for part in np.array_split(values, 10):
        histogram.add(part)
    assert (values > histogram.exceeded_by(0.005)).sum(0).tolist() == [0, 2, 0]


def test_more_values_than_bins_take_no_more_memory():
    histogram = Histogram(2, bins=8)
    for i in range(50):
        histogram.add(np.full((3, 2), float(i * i)))
    assert histogram._counts.shape == (2, 8) and histogram._counts.sum() == 300
