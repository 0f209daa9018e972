"""Runs that were never run: with settings, curves and results that a test can work out by hand."""

import json
from pathlib import Path

from afa_jax.report.runs import Run, told_apart

METHODS = ("l2", "delta", "ast", "act")
STAGES = {"afa": ("ast", "act")}


def run(
    recipe="l2",
    seed=0,
    top1=0.9,
    *,
    folder="runs",
    dataset="digits",
    network="resnet18",
    per_class=5,
    taps=4,
    schedule="step",
    alpha=0.1,
    beta=0.01,
    attention=None,
    speed=100.0,
    records=None,
    command="python -m afa_jax.main --config configs/quickstart.py",
):
    """A finished run of two steps a stage; `attention` holds its parameters by stage."""
    stages = STAGES.get(recipe, (recipe,))
    experiment = {
        "data": {"name": dataset, "dir": "", "per_class": per_class, "augmentation": "default"},
        "network": network,
        "recipe": recipe,
        "seed": seed,
        "taps": taps,
        "tap_layers": "",
        "steps": 9000,
        "source": {"weights": "imagenet1k_v1"},
        "schedule": schedule,
        "methods": {name: {"alpha": alpha, "beta": beta} for name in METHODS},
    }
    summary = {
        "experiment": experiment,
        "recipe": recipe,
        "seed": seed,
        "stages": [{"name": name, "steps": 2, "kept": True} for name in stages],
        "last_top1": top1,
        "best_test_top1": top1,
        "parameters": {"network": 11_000_000, "attention": attention or dict.fromkeys(stages, 0)},
        "command": command,
        "train_images": 50,
        "test_images": 1000,
        "train_images_per_second": speed,
        "device": "CPU, 2 cores",
        "versions": {"afa_jax": "0.1.0", "python": "3.11.7"},
        "finished": "2026-11-22",
    }
    if records is None:
        records = [
            record(stage, step, split, 1 / (step + i), top1 - 0.1 / step)
            for i, stage in enumerate(stages, 1)
            for step in (1, 2)
            for split in ("train", "test")
        ]
    return Run(
        Path(folder) / dataset / network / f"{recipe}-{taps}-{per_class}" / f"seed{seed}", summary, tuple(records)
    )


def record(stage, step, split, loss, top1, **others):
    return {
        "stage": stage,
        "step": step,
        "split": split,
        "cross_entropy": loss,
        "loss": 2 * loss,
        "top1": top1,
        **others,
    }


def labelled(*runs):
    """With the settings that tell them apart, as when they are found."""
    return told_apart(runs)


def write(one):
    """The files that the run would have left."""
    one.folder.mkdir(parents=True)
    for name, content in (("summary.json", one.summary), ("config.json", one.experiment)):
        (one.folder / name).write_text(json.dumps(content))
    lines = "".join(json.dumps(line) + "\n" for line in one.records)
    (one.folder / "metrics.jsonl").write_text(lines)
    return one.folder
