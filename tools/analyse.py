"""What trained networks look at: makes the files in `<run>/analysis/` that the report shows.

    python tools/analyse.py runs/quickstart                          # of every finished run there, all that is cheap
    python tools/analyse.py attention maps runs/dogs/afa/seed0 --photos holiday/ --layer layer4.1 --channels 3,17
    python tools/analyse.py parts runs/birds                         # CUB-200-2011 only
    python tools/analyse.py dissection runs/dogs/afa --masks broden/

The words before the folders say what to make; without one, the first four:

    generalisation  cross-entropy and top-1 on training and on test images, and the gap (AFA Theorem 1)
    distances       how far each convolution filter has moved (DELTA Fig. 5)
    attention       where the attention of each stage lies, laid over the photos (AFA eq. 5 to 8)
    maps            activation maps of the channels that the source network uses least (AFA Fig. 2; DELTA Fig. 6, 7)
    parts           activation at the parts of birds (DELTA Table 3)
    dissection      which units detect which concepts (Network Dissection; DELTA Table 4)

What is there, newer than its run and made of the same photos, layer and so on, is not made again. A masks folder has
`images/*`, for each `masks/<the same name>.png` of indices (0: unlabelled), and `concepts.csv`: index,name,category.
Exit status: 0 done; 2 if something could not be made, with a sentence; the rest is made all the same.
"""

import argparse
import sys
from itertools import takewhile
from pathlib import Path

from afa_jax.analysis.analyses import ANALYSES, Options, analyse_all
from afa_jax.errors import UserError


def numbers(text: str) -> tuple[int, ...]:
    """`3,17` as numbers."""
    return tuple(int(part) for part in text.split(","))


def positive(text: str) -> int:
    """A number of at least 1."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="[what …] folder", help="runs, or folders that hold some")
    parser.add_argument("--photos", nargs="+", default=[], type=Path, help="files or folders, in place of test images")
    parser.add_argument("--number", type=positive, default=4, help="of test images that are looked at (default 4)")
    parser.add_argument("--layer", default="", help="of maps, parts and dissection (default: the network's last tap)")
    parser.add_argument("--channels", type=numbers, default=(), help="of maps, such as 3,17")
    parser.add_argument("--masks", type=Path, help="the folder of photos and masks for the dissection")
    parser.add_argument("--force", action="store_true", help="make again what is there")
    given = parser.parse_args(arguments)
    names = list(takewhile(lambda word: word in ANALYSES, given.folders))
    folders = [Path(folder) for folder in given.folders[len(names) :]]
    if not folders:
        parser.error("name the folder of a run, or one that holds some (./attention for a folder of such a name)")
    options = Options(tuple(given.photos), given.number, given.layer, given.channels, given.masks)
    try:
        good = analyse_all(folders, names, options, force=given.force, tell=print, complain=_complain)
    except UserError as error:
        _complain(str(error))
        return 2
    return 0 if good else 2


def _complain(sentence: str) -> None:
    print(f"analyse: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
