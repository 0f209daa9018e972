"""Which alphas train and which blow up, by convention and network: a table, a figure, and the numbers in a file.

    python tools/alpha_range.py --config configs/quickstart.py --networks resnet10_small,resnet18

The recipe (afa) runs with the same alpha in every stage, over six decades in each convention, with three seeds; runs
that are there already are not repeated. An alpha works where every seed finishes and the mean top-1 is within two
points of the best. Writes docs/results/alpha_range.json and docs/alpha_range.svg and .png.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from flax.core import FrozenDict

from afa_jax.command_line import read_experiment
from afa_jax.errors import DivergedError, UserError
from afa_jax.experiment import run
from afa_jax.files import write_json
from afa_jax.models import zoo
from afa_jax.provenance import device, versions
from afa_jax.report import figures
from afa_jax.settings import Experiment
from afa_jax.transfer.recipes import RECIPES

ROOT = Path(__file__).parents[1]
TOLERANCE = 2.0
ALPHAS = {"released": [10.0**k for k in range(-6, 1)], "normalised": [10.0**k for k in range(-3, 4)]}


def measure(
    experiment: Experiment, recipe: str, networks: list[str], sizes: dict[str, int], root: Path
) -> list[dict[str, Any]]:
    """A row for each network, convention and alpha; `top1` in percent of the seeds that finished."""
    rows = []
    for network in networks:
        size = sizes.get(network, experiment.data.image_size)
        resize = size * 9 // 8 if network in sizes else experiment.data.resize
        data = dataclasses.replace(experiment.data, image_size=size, resize=resize)
        for convention, alphas in ALPHAS.items():
            for alpha in alphas:
                row: dict[str, Any] = {
                    "network": network,
                    "convention": convention,
                    "alpha": alpha,
                    "top1": [],
                    "diverged": 0,
                }
                methods = {**experiment.methods}
                for name in RECIPES[recipe].methods:
                    methods[name] = FrozenDict({**methods[name], "alpha": alpha})
                for seed in range(experiment.seeds):
                    one = dataclasses.replace(
                        experiment, recipe=recipe, network=network, convention=convention, seed=seed, seeds=1,
                        data=data, methods=FrozenDict(methods),
                    )  # fmt: skip
                    try:
                        summary = run(one, root / network / convention / f"{alpha:g}" / f"seed{seed}")
                        row["top1"].append(100 * summary["last_top1"])
                    except DivergedError:
                        row["diverged"] += 1
                rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each network and convention: the working alphas, and from where on it blows up."""
    lines = ["| network | convention | works from | to | decades | blows up from |", "|---|---|---|---|---|---|"]
    for network, convention in dict.fromkeys((row["network"], row["convention"]) for row in rows):
        good = figures.working(rows, network, convention, TOLERANCE)
        line = [row for row in rows if (row["network"], row["convention"]) == (network, convention)]
        broken = [row["alpha"] for row in line if row["diverged"]]
        width = f"{sum(alpha in good for alpha in ALPHAS[convention]) - 1}" if good else "–"
        ends = (f"{good[0]:g}", f"{good[-1]:g}") if good else ("–", "–")
        lines.append(
            f"| {network} | {convention} | {ends[0]} | {ends[1]} | {width} | {f'{min(broken):g}' if broken else '–'} |"
        )
    return "\n".join(lines)


def read_size(text: str, networks: list[str]) -> tuple[str, int]:
    """`NETWORK=PIXELS`.

    Raises:
      UserError: it is not of that form, or of no network that is measured.
    """
    network, _, pixels = text.partition("=")
    if network not in networks or not pixels.isdigit() or not 8 <= int(pixels) <= 2048:
        raise UserError(f"--size {text} must be NETWORK=PIXELS, one of {', '.join(networks)} and 8 to 2048.")
    return network, int(pixels)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--recipe", default="afa")
    parser.add_argument("--networks", default="resnet10_small,resnet18")
    parser.add_argument("--size", action="append", default=[], metavar="NETWORK=PIXELS", help="another image size")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workdir", type=Path, default=Path("runs/alpha_range"))
    options = parser.parse_args(argv)
    try:
        experiment = read_experiment(options.config)
        experiment = dataclasses.replace(experiment, steps=options.steps, eval_every=0, checkpoint_every=10**6)
        networks = options.networks.split(",")
        for name in networks:
            zoo.known(name)
        sizes = dict(read_size(size, networks) for size in options.size)
        rows = measure(experiment, options.recipe, networks, sizes, options.workdir)
    except UserError as error:
        print(f"alpha_range: {error}", file=sys.stderr)
        return 2
    about = {"recipe": options.recipe, "steps": options.steps, "tolerance": TOLERANCE, "sizes": sizes}
    result = {**about, "device": device(), "versions": versions(), "rows": rows}
    (ROOT / "docs" / "results").mkdir(parents=True, exist_ok=True)
    write_json(ROOT / "docs" / "results" / "alpha_range.json", result)
    figures.save(figures.alpha_range(rows, TOLERANCE), ROOT / "docs" / "alpha_range")
    print(table(json.loads(json.dumps(rows))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
