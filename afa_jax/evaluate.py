"""Tests the network that a run trained, on its own data set or any other of the catalogue.

    python -m afa_jax.evaluate runs/dogs/afa/seed0                                      # the run's test images
    python -m afa_jax.evaluate runs/dogs/afa/seed0 -o said.json --config.data.name=image_folder --config.data.dir=photos
    python -m afa_jax.evaluate runs/dogs/afa/seed0 --config configs/stanford_dogs120.py --split=all

The settings are the run's, but for those given: --config.data.* one by one, or --config for all of a config file's
`data`. Of another data set all images of a split are taken, whatever the run had (`data.per_class`, `data.fold`),
unless that is given too. The network sees them as in its own evaluation: the centre crop, or ten crops with
`data.augmentation=improved`. The data set's classes must be among the network's, by name, in any order.

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
from afa_jax.files import write_json
from afa_jax.inference.assessment import Counts, count, report
from afa_jax.inference.classifier import Classifier, classifier
from afa_jax.inference.finished import Finished, reopen
from afa_jax.plan import data_request
from afa_jax.provenance import device, versions
from afa_jax.settings import Experiment, to_json

SPLITS = ("test", "train", "all")


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
        if setting.startswith("--config.") and key != "eval_batch_size" and not key.startswith("data."):
            raise UserError(f"config.{key} is the run's own: evaluate takes config.data.* and config.eval_batch_size.")
    if file:
        other = read_experiment(file, settings)
        return dataclasses.replace(run, data=other.data, eval_batch_size=other.eval_batch_size)
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
    if data.held_out and split != "train":
        raise UserError(
            f"The test images of {e.data.name} show classes that are not trained on, so they have no top-1: give "
            "--split=train."
        )
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


def about(run: Finished, workdir: Path) -> dict[str, Any]:
    """Which run it is."""
    return {"run": str(workdir), "network": run.experiment.network, "recipe": run.summary["recipe"]} | {
        "seed": run.summary["seed"]
    }


def _tell(result: Mapping[str, Any]) -> None:
    data = result["data"]
    name = data["dir"] or data["name"]
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
