"""Makes a report of finished runs: one page, and its figures and tables as files.

    python tools/report.py runs/quickstart                   # writes report/index.html
    python tools/report.py runs/dogs runs/birds -o report/both

Every finished run below the folders is in it; runs of different data sets or networks stand side by side. The page is
one file that needs no network. What is not in it, and why, is said here and on the page. What `tools/analyse.py` has
made of the runs is shown too.
"""

import argparse
import sys
from pathlib import Path

from afa_jax.errors import UserError
from afa_jax.report import page
from afa_jax.report.runs import find_runs


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", type=Path, help="folders with runs in them or below")
    parser.add_argument("-o", "--output", type=Path, default=Path("report"), help="folder of the report")
    options = parser.parse_args(argv)
    try:
        page.check_place(options.output)
        runs, left_out = find_runs(options.workdirs)
        made, left_out = page.build(runs, left_out)
        page.write(made, options.output)
    except UserError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    for sentence in left_out:
        print(f"report: {sentence}", file=sys.stderr)
    size = len(made[page.INDEX]) / 1e6
    drawn = sum(name.endswith(".svg") for name in made)
    print(f"{options.output / page.INDEX}: {len(runs)} runs, {drawn} figures, {size:.1f} MB.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
