"""Makes a table or figure of the papers, or any comparison, from runs that can be stopped and continued.

    python tools/sweep.py --preset afa/table4 --config configs/stanford_dogs120.py
    python tools/sweep.py --config configs/quickstart.py --recipes l2,delta,afa --seeds 5 --jobs 2
    python tools/sweep.py --config configs/caltech256_60.py --recipes afa --cross_validate alpha --config.steps=4500

What is finished is skipped, what was interrupted goes on; a run that fails is told and does not stop the others.
Ctrl-C or SIGTERM lets the runs save what they did; the same command goes on. Settings are given as --config.key=value.
The runs are in runs/<config>, what they say in runs/<config>/logs; tables (Markdown, LaTeX, CSV) and figures beside.
With several devices in CUDA_VISIBLE_DEVICES and --jobs, each run gets one.

Exit status: 0 all done; 2 something failed, which is said; 75 stopped.
"""

import argparse
import signal
import sys
from pathlib import Path

from rich.console import Console

from afa_jax.errors import UserError, disk_fault, nearest
from afa_jax.sweep.cross_validation import Search
from afa_jax.sweep.presets import GRID, PRESETS, Preset, Variant
from afa_jax.sweep.sweep import Sweep, sweep
from afa_jax.training import preemption


def names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in names(text))


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def read(argv: list[str]) -> tuple[Sweep, Path]:
    """What is wanted, and the folder for tables and figures.

    Raises:
      UserError: a flag is wrong.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shown = ", ".join(PRESETS)
    parser.add_argument(
        "--config", nargs="+", required=True, metavar="FILE", help="an experiment; several: a data set each"
    )
    parser.add_argument("--preset", help=f"a table or figure of the papers: {shown}")
    parser.add_argument("--recipes", type=names, default=(), help="in place of a preset, separated by commas")
    parser.add_argument("--networks", type=names, default=(), help="in place of the preset's and the config's own")
    parser.add_argument("--seeds", type=positive, default=0, help="runs of each; the config's number if not given")
    parser.add_argument("--jobs", type=positive, default=1, help="runs at a time")
    parser.add_argument("--cross_validate", type=names, default=(), metavar="NAMES",
                        help="alpha, beta or settings by name, chosen on parts of the training images")  # fmt: skip
    parser.add_argument("--grid", type=numbers, default=GRID, help="values for it; the papers' if not given")
    parser.add_argument("--folds", type=positive, default=5, help="parts of the training images")
    parser.add_argument("--workdir", type=Path, help="in place of runs/<config>")
    options, rest = parser.parse_known_args(argv)
    settings = dict(argument.removeprefix("--config.").split("=", 1) for argument in rest if is_setting(argument))
    if wrong := [argument for argument in rest if not is_setting(argument)]:
        raise UserError(f"The argument {wrong[0]!r} means nothing here; settings are given as --config.key=value.")
    roots = {config: Path("runs") / config_name(config) for config in options.config}
    if len(set(roots.values())) < len(options.config):
        raise UserError(
            f"Two of the configs {', '.join(options.config)} have one name: sweep them one after the other."
        )
    if options.workdir:
        roots = {c: options.workdir / root.name if len(roots) > 1 else options.workdir for c, root in roots.items()}
    search = Search(options.cross_validate, options.grid, options.folds) if options.cross_validate else None
    name, preset = chosen(options.preset, options.recipes)
    wanted = Sweep(name, preset, roots, options.networks, options.seeds, settings, search, options.jobs)
    together = options.workdir or Path("runs")
    return wanted, next(iter(roots.values())) if len(roots) == 1 else together


def config_name(config: str) -> str:
    """As `main` names the folder of its runs."""
    file, _, network = config.partition(":")
    return f"{Path(file).stem}-{network}" if network else Path(file).stem


def is_setting(argument: str) -> bool:
    return argument.startswith("--config.") and "=" in argument


def chosen(preset: str | None, recipes: tuple[str, ...]) -> tuple[str, Preset]:
    """The preset, or one that the recipes make up."""
    if bool(preset) == bool(recipes):
        raise UserError(f"Give either --preset ({', '.join(PRESETS)}) or --recipes.")
    if recipes:
        together = "+".join(recipes)
        name = together if len(together) <= 60 else f"{len(recipes)}-recipes"
        return name, Preset("Sweep", tuple(Variant(recipe) for recipe in recipes))
    assert preset is not None
    if preset not in PRESETS:
        raise UserError(f"There is no preset {preset!r}; {nearest(preset, PRESETS)}")
    return preset.replace("/", "-"), PRESETS[preset]


def main(argv: list[str]) -> int:
    try:
        preemption.listen(signal.SIGINT)
        faults = sweep(*read(argv), Console())
    except preemption.Stopped:
        print("sweep: stopped; the same command goes on where this one ended.", file=sys.stderr)
        return preemption.STOPPED
    except UserError as error:
        faults = [str(error)]
    except OSError as error:
        if not (fault := disk_fault(error) or (isinstance(error, FileExistsError) and error.strerror)):
            raise
        faults = [f"{error.filename or 'A file'} cannot be written: {fault}."]
    for fault in faults:
        print(f"sweep: {fault}", file=sys.stderr)
    return 2 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
