"""All analyses by name: what each looks at, what it leaves in `<run>/analysis/`, and when that is made anew."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from afa_jax.analysis.activations import activation_maps
from afa_jax.analysis.attention import Attention, attention, describe, overlay, predictions
from afa_jax.analysis.concepts import read_masked
from afa_jax.analysis.dissection import dissect
from afa_jax.analysis.distances import distances
from afa_jax.analysis.generalisation import generalisation
from afa_jax.analysis.parts import part_activations
from afa_jax.analysis.photos import digest, photos
from afa_jax.analysis.trained import TrainedRun
from afa_jax.data.dataset import Split
from afa_jax.errors import UserError, disk_fault
from afa_jax.files import whole, write_json
from afa_jax.report.analyses import FOLDER, READERS
from afa_jax.report.runs import find_runs
from afa_jax.training.workdir import SUMMARY

ARGUMENTS = "arguments"
"""Under this name every result says what it was made of besides the run."""


@dataclass(frozen=True)
class Options:
    """What is looked at. `photos`: files and folders, or else `number` of the test images; `layer`: "" for the
    network's last tap; `channels`: none for the quiet ones; `masks`: for the dissection."""

    photos: tuple[Path, ...] = ()
    number: int = 4
    layer: str = ""
    channels: tuple[int, ...] = ()
    masks: Path | None = None


@dataclass(frozen=True)
class Plan:
    """An analysis of one run before it is made.

    Attributes:
      arguments: all on which its result depends besides the run, as JSON has it.
      save: makes it and writes its file, which then has the arguments under `ARGUMENTS`.
    """

    arguments: Mapping[str, Any]
    save: Callable[[Path], None]


@dataclass(frozen=True)
class Analysis:
    """One entry of `ANALYSES`: what `READERS` calls it and its plan; `cheap` ones are made where none is named."""

    name: str
    plan: Callable[[TrainedRun, Options], Plan]
    cheap: bool = True


class NothingToShow(UserError):
    """The run has nothing of what is asked for, and that is no fault."""


def _json(arguments: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> Plan:
    return Plan(arguments, lambda file: write_json(file, {**make(), ARGUMENTS: arguments}))


def _generalisation(run: TrainedRun, options: Options) -> Plan:
    return _json({}, lambda: generalisation(run))


def _distances(run: TrainedRun, options: Options) -> Plan:
    return _json({}, lambda: distances(run))


def _maps(run: TrainedRun, options: Options) -> Plan:
    seen, layer = photos(run, options.photos, options.number), run.layer(options.layer)
    arguments = {"photos": digest(seen), "layer": layer, "channels": list(options.channels)}

    def save(file: Path) -> None:
        arrays = {**activation_maps(run, seen, layer, options.channels), ARGUMENTS: np.array(json.dumps(arguments))}
        with whole(file) as partial, partial.open("wb") as opened:
            np.savez_compressed(opened, allow_pickle=False, **arrays)

    return Plan(arguments, save)


def _attention(run: TrainedRun, options: Options) -> Plan:
    if not any(stage.method.has_taps for stage in run.planned):
        raise NothingToShow(f"{run.folder}: {run.experiment.recipe} has no attention to show.")
    seen = photos(run, options.photos, options.number)
    arguments = {"photos": digest(seen)}
    return Plan(arguments, lambda file: _save_attention(run, seen, file, arguments))


def _save_attention(run: TrainedRun, seen: Split, file: Path, arguments: Mapping[str, Any]) -> None:
    """Beside the JSON file a folder of its name with the pictures; when the file is there, they all are."""
    found = [one for stage in run.stages for one in attention(stage, run.preprocess, seen)]
    if not found:
        raise NothingToShow(f"{run.folder}: {run.experiment.recipe} has no attention to show.")
    folder = file.with_suffix("")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        told = _draw(run, seen, found, partial, folder.name)
        file.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    write_json(file, {**told, ARGUMENTS: arguments})


def _draw(run: TrainedRun, seen: Split, found: Sequence[Attention], folder: Path, name: str) -> dict[str, Any]:
    """Draws the photos and what is laid over them into `folder`, and tells of them as files in a folder `name`."""
    told: dict[str, list[dict[str, Any]]] = {"photos": [], "overlays": []}
    for i, prediction in enumerate(predictions(run, seen)):
        Image.fromarray(seen.images[i]).save(folder / f"{i}.png")
        told["photos"].append({"file": f"{name}/{i}.png", "name": seen.files[i], **prediction})
        for one in found:
            file = f"{i}-{one.stage}-{one.tap}-{one.kind}.png"
            overlay(one.shown[i], run.size).save(folder / file)
            about = {"photo": i, "stage": one.stage, "tap": one.tap, "kind": one.kind, "file": f"{name}/{file}"}
            told["overlays"].append({**about, **describe(one, i)})
    return told


def _parts(run: TrainedRun, options: Options) -> Plan:
    layer = run.layer(options.layer)

    def make() -> dict[str, Any]:
        nets = {"target": run.target, "source": run.start}
        return {**{name: part_activations(run, net, layer) for name, net in nets.items()}, "layer": layer}

    return _json({"layer": layer}, make)


def _dissection(run: TrainedRun, options: Options) -> Plan:
    if options.masks is None:
        raise UserError("The dissection needs photos with masks: give --masks FOLDER.")
    masked, layer = read_masked(options.masks), run.layer(options.layer)
    arguments = {"layer": layer, "masks": _state(options.masks)}
    return _json(arguments, lambda: dissect({"target": run.target, "source": run.start}, run.preprocess, masked, layer))


def _state(folder: Path) -> str:
    """Changes with the files of a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    state = [(str(f.relative_to(folder)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return sha256(repr(state).encode()).hexdigest()


ANALYSES = {
    "generalisation": Analysis("generalisation", _generalisation),
    "distances": Analysis("filter_distances", _distances),
    "attention": Analysis("attention", _attention),
    "maps": Analysis("activation_maps", _maps),
    "parts": Analysis("parts", _parts, cheap=False),
    "dissection": Analysis("dissection", _dissection, cheap=False),
}


def analyse(run: TrainedRun, name: str, options: Options, *, force: bool = False) -> str:
    """Makes one analysis of a run, unless it is there, newer than the run and made of the same.

    Args:
      name: in `ANALYSES`.
      force: make it in any case.

    Returns:
      A sentence that says where it is.

    Raises:
      NothingToShow: the run has nothing of that.
      UserError: whatever the user can mend; then nothing is written.
    """
    analysis = ANALYSES[name]
    file = run.folder / FOLDER / READERS[analysis.name][0]
    plan = analysis.plan(run, options)
    if not force and _is_there(file, run.folder / SUMMARY, plan.arguments):
        return f"{file}: there already."
    try:
        file.parent.mkdir(exist_ok=True)
        plan.save(file)
    except OSError as error:
        fault = "it is no folder" if isinstance(error, FileExistsError) else disk_fault(error)
        if fault is None:
            raise
        raise UserError(f"{error.filename or file} cannot be written or read: {fault}.") from error
    return f"{file}: made."


def _is_there(file: Path, summary: Path, arguments: Mapping[str, Any]) -> bool:
    try:
        if file.stat().st_mtime_ns < summary.stat().st_mtime_ns:
            return False
        if file.suffix == ".npz":
            with np.load(file) as arrays:
                found = json.loads(str(arrays[ARGUMENTS]))
        else:
            found = json.loads(file.read_text(encoding="utf-8"))[ARGUMENTS]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return found == arguments


def analyse_all(
    folders: Iterable[Path],
    names: Sequence[str],
    options: Options,
    *,
    force: bool = False,
    tell: Callable[[str], None],
    complain: Callable[[str], None],
) -> bool:
    """The analyses `names`, or all cheap ones, of every finished run in the folders; what fails stops no other.

    Args:
      tell: is given a sentence about each result, and each that a run does not have.
      complain: is given one about each that failed, and each run that is left out.

    Returns:
      Whether none failed.

    Raises:
      UserError: there is no finished run.
    """
    runs, left_out = find_runs(folders)
    for sentence in left_out:
        complain(sentence)
    if not runs:
        raise UserError(f"There is no finished run in {', '.join(map(str, folders))}.")
    good = True
    for found in runs:
        try:
            run = TrainedRun(found.folder)
        except UserError as error:
            good = False
            complain(str(error))
            continue
        for name in names or [name for name, analysis in ANALYSES.items() if analysis.cheap]:
            try:
                tell(analyse(run, name, options, force=force))
            except NothingToShow as error:
                tell(str(error))
            except UserError as error:
                good = False
                complain(f"{found.folder}, {name}: {error}")
    return good
