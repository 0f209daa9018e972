"""Finished runs, read from the files that they left."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afa_jax.errors import UserError
from afa_jax.measures import MEASURES, last, measure

_NUMBER = (int, float)
_SHAPE = {
    "experiment": {
        "data": {"name": str, "dir": str, "per_class": int, "augmentation": str},
        "source": {"weights": str},
        **{"network": str, "steps": int, "schedule": str, "taps": int, "tap_layers": str, "methods": dict},
    },
    **{"recipe": str, "seed": int, "command": str, "device": str, "versions": dict, "finished": str, "stages": list},
    **{"train_images": int, "test_images": int},
    "train_images_per_second": _NUMBER,
    "parameters": {"network": int, "attention": dict},
}
"""What a summary must say, and of which type, for anything to be made of it."""
_VERIFICATION = {"verification": {"pairs": dict, "tar_at_far": list, "roc": list}}
_STAGE = {"name": str, "steps": int, "kept": bool}
_RECORD = {"stage": str, "step": int, "split": str}

ORDER = (
    *("scratch", "l2", "l2_fe", "l2_sp", "l2_sp_att", "lwf", "soft_ft", "bss", "co_tuning", "dfa", "delta"),
    *("ast", "act", "afa_one_stage", "afa", "afa_reversed", "afa_keep_teacher"),
    *("ast_fixed", "act_fixed", "afa_fixed_attention"),
)
"""Of the recipes in tables and legends."""
_OWN_PICTURES = ("image_folder", "identities", "arrays")  # data sets whose folder says which they are


@dataclass(frozen=True)
class Run:
    """A finished run, or one that failed.

    Attributes:
      summary: `summary.json`; of a run that failed, what is known: `experiment`, `recipe`, `seed` and the names of its
        `stages`.
      records: the lines of `metrics.jsonl`.
      setting: what tells it from the other runs of its data set, network and recipe, such as `taps=8`.
    """

    folder: Path
    summary: Mapping[str, Any]
    records: tuple[Mapping[str, Any], ...] = ()
    setting: str = ""

    @property
    def experiment(self) -> Mapping[str, Any]:
        return self.summary["experiment"]

    @property
    def recipe(self) -> str:
        return self.summary["recipe"]

    @property
    def seed(self) -> int:
        return self.summary["seed"]

    @property
    def network(self) -> str:
        return self.experiment["network"]

    @property
    def dataset(self) -> str:
        """Its name, that of the folder for a person's own pictures, and the number of labelled images a class."""
        data = self.experiment["data"]
        name = os.path.basename(os.path.normpath(data["dir"])) if data["name"] in _OWN_PICTURES else data["name"]
        return f"{name}_{data['per_class']}" if data["per_class"] else name

    @property
    def label(self) -> str:
        return f"{self.recipe}, {self.setting}" if self.setting else self.recipe

    @property
    def failed(self) -> bool:
        return not measure(self.summary)

    @property
    def score(self) -> float:
        """In percent, on the test split at the last step; of several false accept rates at the first."""
        return last(self.summary)

    @property
    def scored(self) -> str:
        """What `score` is, such as `top-1`."""
        return MEASURES[measure(self.summary)]

    @property
    def verified(self) -> Sequence[Mapping[str, Any]]:
        """The true accept rate at each false accept rate, where identities were held out."""
        return self.summary["verification"]["tar_at_far"] if measure(self.summary) == "tar" else ()


def find_runs(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Every finished run in the folders and below, each once, and a sentence about each that is left out.

    They come in the order of the papers' tables. Runs of cross-validation are no results and are passed over.

    Raises:
      UserError: there is no such folder.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}.")
        for file in sorted(folder.rglob("config.json"), key=_natural):
            found.setdefault(file.parent.resolve(), file.parent)
    runs, problems = read_runs(found.values())
    return sorted(runs, key=lambda run: ORDER.index(run.recipe) if run.recipe in ORDER else len(ORDER)), problems


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs that are finished in these folders, and a sentence about each that is left out.

    Of two that are the same run, as a copy is, or as one that was tested more often, the one with more in its journal.
    """
    runs: dict[str, Run] = {}
    problems = []
    for folder in folders:
        try:
            run = _read(folder)
        except UserError as error:
            problems.append(str(error))
            continue
        if run.experiment["data"].get("fold"):
            continue
        settings = {key: value for key, value in _relevant(run).items() if key != "eval_every"}
        same = json.dumps([run.recipe, run.seed, settings], sort_keys=True)
        less, more = sorted((runs.get(same, run), run), key=lambda one: len(one.records))
        if same in runs:
            problems.append(f"{less.folder} is the same run as {more.folder}, and counts once.")
        runs[same] = more
    return told_apart(list(runs.values())), problems


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sorts `seed10` behind `seed9`."""
    return [(len(part), part) if part.startswith("seed") else (0, part) for part in file.parts]


def _read(folder: Path) -> Run:
    try:
        text = (folder / "summary.json").read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} is not finished, or it failed: its command goes on with it.") from error
    try:
        summary = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{folder / 'summary.json'} is damaged: remove it, and the run's command makes it anew."
        ) from error
    shape = _SHAPE | (_VERIFICATION if measure(summary) == "tar" else {"last_top1": _NUMBER, "best_test_top1": _NUMBER})
    misfit = _misfit(summary, shape) or next(filter(None, (_misfit(stage, _STAGE) for stage in summary["stages"])), "")
    if misfit or not summary["stages"]:
        what = misfit or "stages"
        raise UserError(f"{folder} is of an older version and does not say its {what}: run it again elsewhere.")
    return Run(folder, summary, _records(folder / "metrics.jsonl"))


def _misfit(found: Any, shape: Mapping[str, Any], prefix: str = "") -> str:
    """The first of the names in `shape` that is not there, or of another type."""
    for key, kind in shape.items():
        value = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(kind, Mapping):
            if misfit := _misfit(value, kind, f"{prefix}{key}."):
                return misfit
        elif not isinstance(value, kind):
            return prefix + key
    return ""


def _records(file: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        records = tuple(json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is lost or damaged; bring it back, or run that run again elsewhere.") from error
    if not records or any(_misfit(record, _RECORD) for record in records):
        raise UserError(f"{file} is not whole; bring it back, or run that run again elsewhere.")
    return records


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """The same runs, each with the settings in which those of one data set, network and recipe differ."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    flat = [_relevant(run) for run in runs]
    for run, settings in zip(runs, flat, strict=True):
        groups.setdefault((run.dataset, run.network, run.recipe), []).append(settings)
    made = []
    for run, settings in zip(runs, flat, strict=True):
        siblings = groups[run.dataset, run.network, run.recipe]
        differing = [key for key in settings if any(other.get(key) != settings[key] for other in siblings)]
        setting = ", ".join(f"{_tail(key, differing)}={settings[key]}" for key in differing)
        made.append(Run(run.folder, run.summary, run.records, setting))
    return made


def _tail(name: str, names: Sequence[str]) -> str:
    """The shortest end of a dotted name that no other of `names` has: `alpha` for `methods.delta.alpha`."""
    parts = name.split(".")
    ends = (".".join(parts[i:]) for i in reversed(range(len(parts))))
    return next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in names) == 1), name)


_NOT_THE_RUN = (
    *("recipe", "seed", "seeds", "eval_batch_size", "checkpoint_every", "keep_checkpoints", "log_every"),
    *("parallel", "remat"),  # but for rounding
)
_ADDED = {
    **{"loss.name": "softmax", "loss.scale": 64.0, "loss.margin": 0.5},
    **{"fars": "1e-5,1e-6,1e-7", "data.held_out": 80, "data.fold": "", "cross_validated": ""},
}
"""Settings that older summaries do not have, as they were then."""


def _relevant(run: Run) -> dict[str, Any]:
    """The settings on which a run's result depends, by dotted name, without its seed and what was chosen for it."""
    experiment = {key: value for key, value in run.experiment.items() if key not in _NOT_THE_RUN}
    used = {stage["name"] for stage in run.summary["stages"]}
    experiment["methods"] = {name: settings for name, settings in experiment["methods"].items() if name in used}
    flat = {**_ADDED, **dict(_flat(experiment))}
    chosen = tuple(name for name in experiment.get("cross_validated", "").split("+") if name)
    return {key: value for key, value in flat.items() if not f".{key}".endswith(tuple(f".{n}" for n in chosen))}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
