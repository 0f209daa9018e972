"""High quantiles of many numbers that are seen once and not kept."""

import numpy as np

BINS = 4096


class Histogram:
    """Counts of the values of each unit, in memory that does not grow with their number.

    A unit's bins are of one width and cover all that it has shown so far. Where a value falls outside, neighbouring
    bins are joined two by two, so the width doubles and half of the bins are free again; nothing is lost but that.
    Hence no bin is wider than 4·(largest − smallest value)/`bins`, unless all are alike, whatever the order of the
    values: a bound that does not rest on chance, as that of a sample would.
    """

    def __init__(self, units: int, bins: int = BINS):
        self._counts = np.zeros((units, bins), np.int64)
        self._low, self._width = np.zeros(units), np.zeros(units)
        self._seen = 0

    def add(self, values: np.ndarray) -> None:
        """Counts `[M, units]` finite values."""
        values = np.asarray(values, np.float64)
        bins = self._counts.shape[1]
        low, high = values.min(0), values.max(0)
        if not self._seen:
            # A unit that is dead so far needs a width too; a hair is wide enough for it to begin with.
            hair = np.spacing(np.maximum(np.abs(low), np.abs(high))) + 1e-30
            self._low, self._width = low, np.maximum((high - low) / (bins - 1), hair)
        self._widen(low, high)
        places = np.clip(((values - self._low) / self._width).astype(np.int64), 0, bins - 1)
        flat = places + bins * np.arange(len(self._counts))
        self._counts += np.bincount(flat.ravel(), minlength=self._counts.size).reshape(self._counts.shape)
        self._seen += len(values)

    def _widen(self, low: np.ndarray, high: np.ndarray) -> None:
        bins = self._counts.shape[1]
        while True:
            below, above = low < self._low, high >= self._low + bins * self._width
            if not (below | above).any():
                return
            for chosen, half in ((below, slice(bins // 2, None)), (above & ~below, slice(None, bins // 2))):
                joined = self._counts[chosen].reshape(-1, bins // 2, 2).sum(-1)
                wider = np.zeros((len(joined), bins), np.int64)
                wider[:, half] = joined
                self._counts[chosen] = wider
            self._low = np.where(below, self._low - bins * self._width, self._low)
            self._width = np.where(below | above, 2 * self._width, self._width)

    def exceeded_by(self, share: float) -> np.ndarray:
        """For each unit the least edge T of a bin with P(a > T) ≤ `share`: `[units]`.

        An edge that is above, so that of a unit that mostly gives one value, such as the zero of a ReLU, that value
        itself does not exceed T.
        """
        # How many values lie above the upper edge of each bin; the last bin has none above it.
        above = self._counts[:, ::-1].cumsum(1)[:, ::-1] - self._counts
        first = (above <= share * self._seen).argmax(1)
        return self._low + (first + 1) * self._width
