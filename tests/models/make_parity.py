"""Writes PyTorch's side of the parity cases: `python -m tests.models.make_parity [NAME …]`.

Needs torch and torchvision.
"""

import sys

import numpy as np

from tests.models import parity_cases as cases


def main(names):
    from tests.models import torchvision_side

    cases.FOLDER.mkdir(exist_ok=True)
    for name in names or cases.SIZES:
        results = torchvision_side.evaluated(name, cases.taps(name)) | torchvision_side.trained(name)
        file = cases.FOLDER / f"{name}.npz"
        np.savez_compressed(file, **cases.condense(results))
        print(f"{file.name}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
