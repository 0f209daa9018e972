"""Fine-tuning from Python: `finetune` does what `main` does with a config, in the same folder, and gives the result."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from afa_jax.config import default, known_keys, settle, unknown_key
from afa_jax.data.builders import arrays
from afa_jax.data.catalog import CATALOG
from afa_jax.data.tfds_catalog import PREFIX
from afa_jax.errors import UserError
from afa_jax.experiment import run
from afa_jax.files import cache_folder
from afa_jax.inference.classifier import Classifier, Picture, classifier
from afa_jax.inference.finished import Finished, reopen
from afa_jax.measures import measure, told
from afa_jax.models import weights as weight_files
from afa_jax.models import zoo
from afa_jax.plan import run_identity
from afa_jax.report import tables
from afa_jax.report.runs import Run
from afa_jax.settings import Experiment
from afa_jax.training.journal import METRICS, read_metrics
from afa_jax.training.workdir import fingerprint
from afa_jax.types import Variables


class Arrays(NamedTuple):
    """Labelled images in memory: uint8 `[N, H, W, 3]`, and for each its place in `classes`."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: Sequence[str]


@dataclass(frozen=True)
class Result:
    """A finished run; called on pictures, it gives the probabilities of their classes."""

    run: Finished

    @property
    def workdir(self) -> Path:
        return self.run.folder

    @property
    def summary(self) -> Mapping[str, Any]:
        """As in `summary.json`: `last_top1`, the stages, the command's device and versions."""
        return self.run.summary

    @property
    def top1(self) -> float:
        """On the test images after the last step, a share in [0, 1].

        Raises:
          UserError: the test images are of people who are not trained on, and their measure is TAR.
        """
        if measure(self.summary) != "top1":
            raise UserError(f"{self.workdir} has no top-1 but {told(self.summary)}.")
        return self.summary["last_top1"]

    @cached_property
    def model(self) -> Classifier:
        """The trained network: its module, variables, classes and preprocessing."""
        return classifier(self.run)

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, oldest first."""
        return read_metrics(self.workdir / METRICS)

    @property
    def table(self) -> str:
        """The run as a line of a table, for a terminal."""
        return table([self])

    def __call__(self, pictures: Iterable[Picture]) -> np.ndarray:
        """The probabilities of the classes, float64 `[N, classes]`.

        Args:
          pictures: files, Pillow images, or uint8 arrays `[H, W, 3]` of any size.
        """
        return self.model(pictures)


def table(results: Iterable[Result]) -> str:
    """Runs beside one another, for a terminal: mean and deviation over seeds, by recipe, data set and network."""
    found = tables.compare(Run(result.workdir, result.summary) for result in results)
    return "\n\n".join(tables.text(one) for one in found)


def finetune(
    network: str = "mobilenet_v2",
    *,
    data: str | Path | Arrays,
    weights: str | Path | Variables = "imagenet1k_v1",
    recipe: str = "afa",
    workdir: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> Result:
    """Fine-tunes a network; called again, it goes on where it stopped, or finds the finished run.

    Args:
      network: its name in the zoo; that of your own is what `register` gives.
      data: a folder of photos (`train/<class>/*` and `test/<class>/*`, or `<class>/*`), a name in the catalogue, or
        arrays.
      weights: where the target starts from and what it is aligned to: a published name, a file, a saved model's folder,
        `train`, or variables in memory, `{"params": …, "batch_stats": …}`.
      recipe: one name, such as `l2`, `delta`, `ast` or `afa`.
      workdir: the run's folder; None: a folder in `runs/finetune` that has the run's settings in its name.
      settings: any others by dotted name, `{"data.per_class": 5, "methods.ast.alpha": 0.01}`; `afa_jax/config.py` has
        them all. Those without a dot may be given as arguments: `steps=900, batch_size=32`.

    Raises:
      UserError: whatever you can mend, in one sentence.
    """
    given = {**_data(data), "network": network, "recipe": recipe, **(settings or {}), **more}
    if network in zoo.NETWORKS:
        given = {"source.weights": _weights(network, weights), **given}
        listed = zoo.NETWORKS[network].taps
        if not given.keys() & {"taps", "tap_layers"} and default().taps not in listed:
            given["taps"] = min(listed)
    experiment = settle(_config(given))
    if len(experiment.recipes) > 1 or experiment.seeds > 1:
        raise UserError("finetune makes one run: call it for each recipe and each seed, and give the results to table.")
    folder = Path(workdir) if workdir is not None else _own_folder(experiment)
    run(experiment, folder)
    return load(folder)


def load(workdir: str | Path) -> Result:
    """The result of a finished run, from the command line or from Python.

    Raises:
      UserError: no finished run is there.
    """
    return Result(reopen(Path(workdir)))


def _config(given: Mapping[str, Any]) -> ConfigDict:
    """The default config with some settings changed, unchecked but for their names."""
    settings, known = default().to_dict(), known_keys()
    for key, value in given.items():
        if key not in known:
            raise unknown_key(key)
        *parts, last = key.split(".")
        place = settings
        for part in parts:
            place = place[part]
        place[last] = value
    return ConfigDict(settings)


def _data(data: str | Path | Arrays) -> dict[str, str]:
    if isinstance(data, Arrays):
        return {"data.name": "arrays", "data.dir": str(_kept(data))}
    if isinstance(data, str) and (data in CATALOG or data.startswith(PREFIX) or not Path(data).exists()):
        return {"data.name": data}
    return {"data.name": "arrays" if Path(data).is_file() else "image_folder", "data.dir": str(data)}


def _kept(data: Arrays) -> Path:
    """The arrays as a file in the cache, so that the run can be gone on with and opened without them."""
    digest = sha256(repr(list(data.classes)).encode())
    for array in data[:4]:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype} {array.shape}\n".encode() + array.tobytes())
    path = cache_folder() / "arrays" / f"{digest.hexdigest()[:16]}.npz"
    if not path.exists():
        arrays.save(path, data._asdict())
    return path


def _weights(network: str, weights: str | Path | Variables) -> str:
    """What `source.weights` says; variables in memory are kept as a saved model in the cache."""
    if not isinstance(weights, Mapping):
        return str(weights)
    folder = cache_folder() / "sources" / f"{network}-{fingerprint(weights)[:16]}"
    if not (folder / weight_files.FILE).exists():
        weight_files.save(folder, network, weights)
    return str(folder)


def _own_folder(e: Experiment) -> Path:
    data = Path(e.data.dir).stem if e.data.dir else e.data.name.replace(":", "-")
    key = sha256(repr(run_identity(e)).encode()).hexdigest()[:8]
    return Path("runs") / "finetune" / f"{e.network}-{data}-{e.recipe}-seed{e.seed}-{key}"
