"""Chooses alpha, or any other number, by cross-validation on the labelled training images (DELTA §4.2)."""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from afa_jax.errors import UserError
from afa_jax.files import write_json
from afa_jax.measures import last
from afa_jax.sweep.jobs import Job, plan
from afa_jax.sweep.presets import GRID, Variant
from afa_jax.sweep.work import Progress
from afa_jax.transfer.methods import METHODS
from afa_jax.transfer.recipes import RECIPES

FOLDER = "cross_validation"
Choice = Mapping[str, Any]
"""One recipe's `name`, `recipe`, what was `chosen`, and the `points` of the grid with their `scores`."""


@dataclass(frozen=True)
class Search:
    """What is chosen, and among which values.

    Attributes:
      names: `alpha` or `beta`, that of all methods of a recipe that have one, alike; or a setting's dotted name.
      values: tried for each name, in all combinations.
      folds: parts of the training images.
    """

    names: Sequence[str] = ("alpha",)
    values: Sequence[float] = GRID
    folds: int = 5

    def points(self, variant: Variant) -> list[dict[str, float]]:
        """The settings that are tried for a recipe; none if it has nothing of those names."""
        keys = [found for name in self.names if (found := _keys(name, variant))]
        return [
            {key: value for names, value in zip(keys, values, strict=True) for key in names}
            for values in itertools.product(self.values, repeat=len(keys))
        ] * bool(keys)


def _keys(name: str, variant: Variant) -> list[str]:
    """The settings of a name, those left out that the variant sets itself or the method does not use."""
    methods = dict.fromkeys(RECIPES[variant.recipe].methods)
    if name in ("alpha", "beta"):
        keys = [f"methods.{method}.{name}" for method in methods if METHODS[method].settings[name] > 0]
    else:
        first, *rest = name.split(".")
        keys = [name] if first != "methods" or rest[0] in methods else []
    return [key for key in keys if key not in variant.settings]


@dataclass(frozen=True)
class Trial:
    """One point of the grid on all folds.

    Attributes:
      variant: with the point's settings.
      jobs: one a fold; none of them looks at the test images.
    """

    variant: Variant
    point: Mapping[str, float]
    jobs: Sequence[Job]

    def scores(self, progress: Progress) -> list[float]:
        """Top-1 or TAR in percent, of the folds that finished."""
        summaries = [progress.summaries[job.workdir] for job in self.jobs if job.workdir in progress.summaries]
        return [last(summary) for summary in summaries]


def trials(
    search: Search, config: str, variant: Variant, *, network: str, seed: int, settings: Mapping[str, Any], root: Path
) -> list[Trial]:
    """The runs that choose for one recipe on one network, below `root/cross_validation`.

    Args:
      seed: of the choice of labelled images and of their parts.
    """
    made = []
    for point in search.points(variant):
        tried = replace(variant, settings={**variant.settings, **point})
        jobs = [
            job
            for k in range(1, search.folds + 1)
            for job in plan(
                config,
                [replace(tried, settings={**tried.settings, "data.fold": f"{k}/{search.folds}"})],
                networks=[network],
                seeds=[seed],
                settings=settings,
                root=root / FOLDER,
            )
        ]
        made.append(Trial(tried, point, jobs))
    return made


def choose(search: Search, tried: Sequence[Trial], progress: Progress, file: Path) -> tuple[Variant, Choice]:
    """The recipe with the settings of the best mean over the folds; of equally good ones the smallest.

    A point of which a fold failed, for the loss blew up, is out.

    Args:
      file: where all points and the choice are kept.

    Returns:
      The recipe, and what is in the file.

    Raises:
      UserError: a fold failed at every point.
    """
    whole = [trial for trial in tried if len(trial.scores(progress)) == len(trial.jobs)]
    if not whole:
        own = [job.workdir for trial in tried for job in trial.jobs]
        fault = next((progress.faults[workdir] for workdir in own if workdir in progress.faults), "")
        raise UserError(f"Cross-validation of {tried[0].variant.recipe} failed at every point of its grid: {fault}")
    best = max(whole, key=lambda trial: (statistics.fmean(trial.scores(progress)), [-v for v in trial.point.values()]))
    file.parent.mkdir(parents=True, exist_ok=True)
    points = [
        {"settings": dict(trial.point), "scores": trial.scores(progress), "folds": len(trial.jobs)} for trial in tried
    ]
    kept = {
        "name": f"{file.parents[1].name}/{file.stem}",
        "recipe": best.variant.recipe,
        "chosen": dict(best.point),
        "points": points,
    }
    write_json(file, kept)
    return replace(best.variant, settings={**best.variant.settings, "cross_validated": "+".join(search.names)}), kept


Run = Callable[[Sequence[Job]], Progress]


class Settled(NamedTuple):
    """What cross-validation has come to.

    Attributes:
      variants: with what was chosen, by network and seed.
      choices: the points of each grid with their scores, and what was chosen.
      faults: a sentence about each variant that could not be settled.
    """

    variants: dict[tuple[str, int], list[Variant]]
    choices: list[Choice]
    faults: list[str]


def settled(
    search: Search,
    config: str,
    variants: Sequence[Variant],
    *,
    networks: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    root: Path,
    run: Run,
) -> Settled:
    """Runs every point of the grid on all folds, and chooses.

    Args:
      seeds: for each of which is chosen, on its own labelled images.
      run: runs jobs.
    """
    everything = {
        (network, seed, variant): trials(
            search, config, variant, network=network, seed=seed, settings=settings, root=root
        )
        for network in networks
        for seed in seeds
        for variant in variants
    }
    progress = run([job for tried in everything.values() for trial in tried for job in trial.jobs])
    made = Settled({(network, seed): [] for network in networks for seed in seeds}, [], [])
    for (network, seed, variant), tried in everything.items():
        parts = (network, variant.recipe, variant.told, f"seed{seed}")
        file = root / FOLDER / f"{'-'.join(part for part in parts if part)}.json"
        try:
            if tried:
                variant, choice = choose(search, tried, progress, file)
                made.choices.append(choice)
            made.variants[network, seed].append(variant)
        except UserError as error:
            made.faults.append(f"{network}, seed {seed}: {error}")
    return made
