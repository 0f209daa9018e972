"""Writes torchvision's side of the parity cases: `python -m tests.models.make_parity` (needs torch, torchvision)."""

import numpy as np

from afa_jax.models.zoo import NETWORKS
from tests.models import parity_cases as cases


def main():
    from tests.models import torchvision_side

    cases.FOLDER.mkdir(exist_ok=True)
    for name in cases.SIZES:
        results = torchvision_side.evaluated(name, NETWORKS[name].taps[4]) | torchvision_side.trained(name)
        file = cases.FOLDER / f"{name}.npz"
        np.savez_compressed(file, **cases.condense(results))
        print(f"{file.name}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
