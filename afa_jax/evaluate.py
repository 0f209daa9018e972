"""Tests the network that a run trained, on its own data set or any other of the catalogue.

    python -m afa_jax.evaluate runs/dogs/afa/seed0                                      # the run's test images
    python -m afa_jax.evaluate runs/dogs/afa/seed0 -o said.json --config.data.name=image_folder --config.data.dir=photos
    python -m afa_jax.evaluate runs/dogs/afa/seed0 --config configs/stanford_dogs120.py --split=all

The settings are the run's, but for those given: --config.data.* one by one, or --config for all of a config file's
`data`. Of another data set all images of a split are taken, whatever the run had (`data.per_class`, `data.fold`),
unless that is given too. The network sees them as in its own evaluation: the centre crop, or ten crops with
`data.augmentation=improved`. The data set's classes must be among the network's, by name, in any order.

Of held-out identities the true accept rates are told, at the run's false accept rates or those of --config.fars.

-o writes all in JSON: top-1 and cross-entropy, those of each class, and the pairs of classes most often confused.
Exit status: 0 done; 2 for what you can mend, said in one sentence.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from afa_jax.command_line import guarded, override, positive, read_experiment
from afa_jax.config import settle
from afa_jax.data import catalog
from afa_jax.data.dataset import Split
from afa_jax.errors import UserError
from afa_jax.evaluation import verification
from afa_jax.evaluation.verification import verify
from afa_jax.files import write_json
from afa_jax.inference.assessment import Counts, count, report
from afa_jax.inference.classifier import Classifier, classifier
from afa_jax.inference.finished import Finished, reopen
from afa_jax.measures import verified
from afa_jax.models import zoo
from afa_jax.plan import anatomy, data_request, rates
from afa_jax.provenance import device, versions
from afa_jax.settings import Experiment, to_json
from afa_jax.training.parallel import Devices

SPLITS = ("test", "train", "all")
_ALSO = ("eval_batch_size", "fars")  # settings that may be given beside those of the data


def main(arguments: list[str] | None = None) -> int:
    given, settings = _parser().parse_known_args(arguments)
    return guarded("evaluate", lambda: _evaluate(given, settings))


def _evaluate(given: argparse.Namespace, settings: Sequence[str]) -> int:
    run = reopen(given.workdir)
    experiment = settled(run.experiment, given.config, settings)
    network = classifier(dataclasses.replace(run, experiment=experiment))
    result = assess(network, experiment, given.split, given.pairs)
    _tell(result)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.output, {**about(run, given.workdir), **result, "device": device(), "versions": versions()})
    return 0


def settled(run: Experiment, file: str | None, settings: Sequence[str]) -> Experiment:
    """The run's experiment with other data.

    Args:
      file: a config file whose `data` is taken.
      settings: `--config.data.key=value`, in place of the run's or the file's.

    Raises:
      UserError: one of them is wrong, or is none of the data.
    """
    keys = [setting.lstrip("-").split("=")[0].removeprefix("config.") for setting in settings]
    for key, setting in zip(keys, settings, strict=True):
        if setting.startswith("--config.") and key not in _ALSO and not key.startswith("data."):
            more = " and ".join(f"config.{name}" for name in _ALSO)
            raise UserError(f"config.{key} is the run's own: evaluate takes config.data.*, {more}.")
    if file:
        other = read_experiment(file, settings)
        return dataclasses.replace(run, data=other.data, **{name: getattr(other, name) for name in _ALSO})
    config = to_json(run)
    if "data.name" in keys or "data.dir" in keys:
        config["data"] |= {"per_class": 0, "fold": ""}
    if "data.name" in keys:
        config["data"]["dir"] = ""
    return settle(override(ConfigDict(config), settings))


def assess(network: Classifier, e: Experiment, split: str, pairs: int) -> dict[str, Any]:
    """The network's figures on a split of an experiment's data set, as `report` has them, and which images they are of.

    Raises:
      UserError: the data set cannot be had, or its classes do not fit.
    """
    data = catalog.load(e.data.name, data_request(e))
    if data.held_out and split == "all":
        raise UserError(f"Of {e.data.name} the test images show identities that are not trained on: give one split.")
    if data.held_out and split == "test":
        found = verify(embed(network, e, data.test), data.test.labels, rates(e, data.test.labels))
        views = "centre crop and its mirror image"
        return {"data": to_json(e.data), "split": split, "views": views, "verification": found}
    chosen: Mapping[str, tuple[Split, ...]] = {
        "test": (data.test,),
        "train": (data.train,),
        "all": (data.train, data.test),
    }
    counts = [count(network, part, data.classes, e.eval_batch_size) for part in chosen[split]]
    both = Counts(np.sum([c.confusion for c in counts], 0), sum(c.loss for c in counts))
    several = "ten crops" if network.preprocess.flip else "five crops"
    views = several if network.ten_crop and split != "train" else "centre crop"
    if network.ten_crop and split == "all":
        views += " of the test images, centre crop of the others"
    return {"data": to_json(e.data), "split": split, "views": views, **report(both, network.classes, pairs)}


def embed(network: Classifier, e: Experiment, split: Split) -> np.ndarray:
    """The embedding of each image, float32 `[N, D]` of length 1."""
    layer = f"{anatomy(zoo.NETWORKS[e.network]).embedding}{zoo.INPUT}"
    variables = Devices().replicate(network.variables)
    return verification.embed(network.module, variables, split, network.preprocess, e.eval_batch_size, layer)


def about(run: Finished, workdir: Path) -> dict[str, Any]:
    """Which run it is."""
    return {"run": str(workdir), "network": run.experiment.network, "recipe": run.summary["recipe"]} | {
        "seed": run.summary["seed"]
    }


def _tell(result: Mapping[str, Any]) -> None:
    data = result["data"]
    name = data["dir"] or data["name"]
    if "verification" in result:
        print("\n".join(f"{name}: {line}" for line in verified(result["verification"])))
        return
    print(
        f"{name}, {result['split']}: top-1 {100 * result['top1']:.1f} % of {result['images']} images "
        f"({result['views']}), cross-entropy {result['cross_entropy']:.3f}"
    )
    wide = max(len(one["class"]) for one in result["per_class"])
    for one in result["per_class"]:
        print(f"  {one['class']:<{wide}}  {100 * one['top1']:5.1f} % of {one['images']}")
    for pair in result["confused"]:
        print(f"  {pair['true']} taken for {pair['predicted']}: {pair['images']}, {100 * pair['share']:.1f} %")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any --config.data.key=value may follow.",
    )
    parser.add_argument("workdir", type=Path, help="of a finished run")
    parser.add_argument("--config", help="a config file whose data is tested on")
    parser.add_argument("--split", choices=SPLITS, default="test", help="of the data set (default: test)")
    parser.add_argument("--pairs", type=positive, default=10, help="of confused classes that are named (default 10)")
    parser.add_argument("-o", "--output", type=Path, help="a JSON file for all of it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
