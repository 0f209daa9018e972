"""A whole sweep: what is wanted is planned, alpha chosen, the runs made, and what they show written down."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from afa_jax.command_line import read_experiment
from afa_jax.config import to_json
from afa_jax.errors import UserError
from afa_jax.files import whole
from afa_jax.plan import planned_stages
from afa_jax.report import figures, tables
from afa_jax.report.runs import Run, read_runs, told_apart
from afa_jax.sweep import cross_validation, parameters
from afa_jax.sweep.cross_validation import Search
from afa_jax.sweep.jobs import Job, plan
from afa_jax.sweep.overview import overview
from afa_jax.sweep.presets import Preset
from afa_jax.sweep.work import Progress, run_jobs

LOGS = "logs"


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

    def run(title: str, jobs: Sequence[Job], logs: Path) -> Progress:
        with overview(title, console) as look:
            return run_jobs(jobs, parallel=wanted.parallel, logs=logs, look=look)

    jobs: list[Job] = []
    faults: list[str] = []
    for config, root in wanted.configs.items():
        own = read_experiment(config, [f"--config.{key}={value}" for key, value in wanted.settings.items()])
        networks = list(dict.fromkeys(wanted.networks or (own.network, *wanted.preset.networks)))
        variants = [variant.without(wanted.settings) for variant in wanted.preset.variants]
        settled, common = {network: variants for network in networks}, dict(wanted.settings)
        if wanted.search:
            settled, problems = cross_validation.settled(
                wanted.search,
                config,
                variants,
                networks=networks,
                seed=own.seed,
                settings=common,
                root=root,
                run=lambda trials, root=root: run("Cross-validation", trials, root / LOGS),
            )
            faults += problems
        seeds = range(own.seed, own.seed + (wanted.seeds or own.seeds))
        for network, chosen in settled.items():
            jobs += plan(config, chosen, networks=[network], seeds=seeds, settings=common, root=root)
    # Seed by seed over all configs and networks, so that an early look sees every one of them.
    jobs.sort(key=lambda job: job.experiment.seed)
    progress = run(wanted.preset.title, jobs, output / LOGS)
    faults += [f"{workdir} failed: {fault}" for workdir, fault in progress.faults.items()]
    return faults + _show(wanted, jobs, progress, output, console)


def _refuse_fixed(wanted: Sweep) -> None:
    """Refuses a setting that would make two of the preset's variants the same."""
    left = [(v.recipe, v.without(wanted.settings).told) for v in wanted.preset.variants]
    twice = [variant for variant, count in Counter(left).items() if count > 1]
    if twice:
        varied = [key for key in wanted.settings if any(key in v.settings for v in wanted.preset.variants)]
        what = f"config.{varied[0]} is what {wanted.name} varies" if varied else f"{twice[0][0]} is named twice"
        raise UserError(f"{what}: leave it out.")


def _count_parameters(wanted: Sweep, output: Path, console: Console) -> list[str]:
    own = [read_experiment(config).network for config in wanted.configs]
    networks = wanted.networks or dict.fromkeys((*own, *wanted.preset.networks))
    table = parameters.markdown(networks)
    console.print(f"{wanted.preset.title}\n\n{table}", markup=False, soft_wrap=True)
    _write(output / f"{wanted.name}.md", table)
    return []


def _show(wanted: Sweep, jobs: Sequence[Job], progress: Progress, output: Path, console: Console) -> list[str]:
    runs, problems = read_runs(job.workdir for job in jobs if job.workdir in progress.summaries)
    if not runs:
        return [*problems, "No run is finished, so there is nothing to show."]
    failed = [_failed(job, runs[0]) for job in jobs if job.workdir in progress.faults]
    for table in tables.compare(told_apart([*runs, *failed])):
        console.print(f"\n{tables.text(table)}", markup=False, soft_wrap=True, highlight=False)
        if "table" in wanted.preset.shows:
            for ending, written in (("md", tables.markdown), ("tex", tables.latex), ("csv", tables.csv)):
                _write(output / f"{wanted.name}-{table.network}.{ending}", written(table))
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


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as partial:
        partial.write_text(f"{text.rstrip()}\n", encoding="utf-8")
