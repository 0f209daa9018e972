"""A whole sweep: what is wanted is planned, alpha chosen, the runs made, and what they show written down."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from afa_jax.command_line import read_experiment
from afa_jax.data.catalog import find
from afa_jax.errors import UserError
from afa_jax.files import locked, whole
from afa_jax.models import weights
from afa_jax.plan import planned_stages
from afa_jax.report import figures, tables
from afa_jax.report.rendering import to_csv, to_latex, to_markdown, to_text
from afa_jax.report.runs import Run, read_runs, told_apart
from afa_jax.settings import to_json
from afa_jax.sweep import cross_validation, parameters
from afa_jax.sweep.cross_validation import Choice, Search
from afa_jax.sweep.jobs import Job, plan
from afa_jax.sweep.overview import overview
from afa_jax.sweep.presets import Preset
from afa_jax.sweep.work import Progress, run_jobs
from afa_jax.transfer.recipes import RECIPES


@dataclass(frozen=True)
class Sweep:
    """What is wanted.

    Attributes:
      name: of the files that are written.
      preset: what varies.
      configs: files, each an experiment on a data set, and the folder of its runs.
      networks: in place of the preset's and the config's own.
      seeds: of each recipe, from the config's seed upwards; 0: as many as the config says.
      settings: in place of the configs' and the preset's, by their dotted names.
      search: what is chosen by cross-validation before the runs.
      parallel: runs at a time.
    """

    name: str
    preset: Preset
    configs: Mapping[str, Path]
    networks: Sequence[str] = ()
    seeds: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    search: Search | None = None
    parallel: int = 1


def sweep(wanted: Sweep, output: Path, console: Console) -> list[str]:
    """Makes the runs, and of them what the preset shows, in `output`.

    Returns:
      A sentence about each thing that failed.

    Raises:
      UserError: a config or a setting is wrong; nothing has been run.
      Stopped: a signal has come.
    """
    _refuse_fixed(wanted)
    if not wanted.preset.variants:
        return _count_parameters(wanted, output, console)
    jobs: list[Job] = []
    faults: list[str] = []
    choices: list[Choice] = []
    with ExitStack() as locks:
        for config, root in wanted.configs.items():
            planned, chosen, problems = _plan(wanted, config, root, console, locks)
            jobs, choices, faults = jobs + planned, choices + chosen, faults + problems
        # Seed by seed over all configs and networks, so that an early look sees every one of them.
        jobs.sort(key=lambda job: job.experiment.seed)
        progress = _run(wanted.preset.title, jobs, wanted.parallel, console)
        faults += [f"{workdir} failed: {fault}" for workdir, fault in progress.faults.items()]
        return faults + _show(wanted, jobs, progress, choices, output, console)


def _run(title: str, jobs: Sequence[Job], parallel: int, console: Console) -> Progress:
    with overview(title, console) as look:
        return run_jobs(jobs, parallel=parallel, look=look)


def _plan(
    wanted: Sweep, config: str, root: Path, console: Console, locks: ExitStack
) -> tuple[list[Job], list[Choice], list[str]]:
    """The runs of one config, whose settings are chosen first if that is wanted, the choices, and what failed."""
    common = dict(wanted.settings)
    own = read_experiment(config, [f"--config.{key}={value}" for key, value in common.items()])
    networks = list(dict.fromkeys(wanted.networks or (own.network, *wanted.preset.networks)))
    variants = [variant.without(common) for variant in wanted.preset.variants]
    seeds = range(own.seed, own.seed + (wanted.seeds or own.seeds))
    jobs = plan(config, variants, networks=networks, seeds=seeds, settings=common, root=root)
    _check_weights(config, jobs)
    try:
        locks.enter_context(locked(root / ".sweep.lock", wait=False))
    except BlockingIOError as error:
        raise UserError(f"Another sweep is at work in {root}: wait for it, or choose another --workdir.") from error
    if not wanted.search:
        return jobs, [], []
    settled = cross_validation.settled(
        wanted.search,
        config,
        variants,
        networks=networks,
        # Where the seed draws the test images, those of one are trained on with another.
        seeds=seeds if find(own.data.name).seeded else seeds[:1],
        settings=common,
        root=root,
        run=lambda trials: _run("Cross-validation", trials, wanted.parallel, console),
    )
    jobs = []
    for network in networks:
        for seed in seeds:
            chosen = settled.variants.get((network, seed), settled.variants[network, seeds[0]])
            jobs += plan(config, chosen, networks=[network], seeds=[seed], settings=common, root=root)
    return jobs, settled.choices, settled.faults


def _check_weights(config: str, jobs: Sequence[Job]) -> None:
    """Refuses source weights that a network does not have, before hours are spent on the others."""
    for job in jobs:
        e = job.experiment
        if e.source.weights != "train" and RECIPES[e.recipe].start == "source":
            try:
                weights.find(e.network, e.source.weights)
            except UserError as error:
                raise UserError(f"{config}: {error} Or leave {e.network} out with --networks.") from error


def _refuse_fixed(wanted: Sweep) -> None:
    """Refuses a setting that would make two of the preset's variants the same."""
    if "data.fold" in wanted.settings:
        raise UserError("config.data.fold is a run of cross-validation, which makes no table: leave it out.")
    left = [(v.recipe, v.without(wanted.settings).told) for v in wanted.preset.variants]
    twice = [variant for variant, count in Counter(left).items() if count > 1]
    if twice:
        varied = [key for key in wanted.settings if any(key in v.settings for v in wanted.preset.variants)]
        what = f"config.{varied[0]} is what {wanted.name} varies" if varied else f"{twice[0][0]} is named twice"
        raise UserError(f"{what}: leave it out.")


def _count_parameters(wanted: Sweep, output: Path, console: Console) -> list[str]:
    flags = [f"--config.{key}={value}" for key, value in wanted.settings.items()]
    own = [read_experiment(config, flags).network for config in wanted.configs]
    lines = parameters.lines(wanted.networks or dict.fromkeys((*own, *wanted.preset.networks)))
    console.print(f"{wanted.preset.title}\n\n{to_text(lines)}", markup=False, soft_wrap=True, highlight=False)
    written = {"md": to_markdown(lines), "tex": to_latex(lines, wanted.preset.title), "csv": to_csv(lines)}
    _write(output / wanted.name, written)
    return []


def _show(
    wanted: Sweep,
    jobs: Sequence[Job],
    progress: Progress,
    choices: Sequence[Choice],
    output: Path,
    console: Console,
) -> list[str]:
    runs, problems = read_runs(job.workdir for job in jobs if job.workdir in progress.summaries)
    if not runs:
        return [*problems, "No run is finished, so there is nothing to show."]
    failed = [_failed(job, runs[0]) for job in jobs if job.workdir in progress.faults]
    summaries = [{key: run.summary[key] for key in run.summary if key != "command"} for run in (*runs, *failed)]
    known = json.dumps({"runs": summaries, "cross_validation": choices}, indent=2)
    _write(output / wanted.name, {"json": known})
    for table in tables.compare(told_apart([*runs, *failed])):
        console.print(f"\n{tables.text(table)}", markup=False, soft_wrap=True, highlight=False)
        if "table" in wanted.preset.shows:
            written = {"md": tables.markdown(table), "tex": tables.latex(table), "csv": tables.csv(table)}
            _write(output / f"{wanted.name}-{table.network}", written)
    for kind in figures.KINDS:
        if kind.name in wanted.preset.shows:
            problems += _draw(kind, runs, output / wanted.name)
    return problems


def _failed(job: Job, other: Run) -> Run:
    """A run that failed, as tables tell it, beside another of the sweep."""
    experiment = to_json(job.experiment)
    experiment["dtype"] = other.experiment["dtype"] if experiment["dtype"] == "auto" else experiment["dtype"]
    stages = [{"name": stage.name} for stage in planned_stages(job.experiment)]
    known = {"recipe": job.experiment.recipe, "seed": job.experiment.seed, "stages": stages}
    return Run(job.workdir, {**known, "experiment": experiment})


def _draw(kind: figures.Kind, runs: Sequence[Run], base: Path) -> list[str]:
    problems, groups = [], kind.split(runs)
    for group in groups:
        name = base if len(groups) == 1 else base.with_name(f"{base.name}-{group[0].dataset}-{group[0].network}")
        try:
            figures.save(kind.draw(group), name)
        except UserError as error:
            problems.append(str(error))
    return problems


def _write(base: Path, written: Mapping[str, str]) -> None:
    base.parent.mkdir(parents=True, exist_ok=True)
    for ending, text in written.items():
        with whole(base.with_name(f"{base.name}.{ending}")) as partial:
            partial.write_text(f"{text.rstrip()}\n", encoding="utf-8")
