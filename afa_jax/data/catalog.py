"""The data sets by name."""

from afa_jax.data import builders
from afa_jax.data.dataset import Builder, Dataset
from afa_jax.errors import UserError, nearest
from afa_jax.registry import collect

CATALOG: dict[str, Builder] = collect(builders, "DATASETS")


def load(name: str, *, size: int, per_class: int = 0, seed: int = 0) -> Dataset:
    """Loads a data set with its images resized to `size` × `size` pixels.

    Args:
      per_class: labelled images a class for training; 0 takes all.
      seed: of their choice.

    Raises:
      UserError: no data set has that name, or a class has too few images.
    """
    if name not in CATALOG:
        raise UserError(f"There is no data set {name!r}; {nearest(name, CATALOG)}")
    return CATALOG[name].load(size, per_class, seed)
