"""How long it takes until something happens, for `tools/benchmark.py starts`."""

import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import jax

from afa_jax.errors import UserError
from afa_jax.models import weights, zoo

ROOT = Path(__file__).parents[1]
QUICKSTART = ("--config.recipe=ast", "--config.seeds=1")
# Those that take images of 64 pixels: programs take as long to compile as for large ones.
NETWORKS = ("resnet10_small", "resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2")
TWO_STAGES = """
from afa_jax.config import default

def get_config():
    config = default()
    config.network, config.source.weights, config.source.normalisation = {network!r}, {weights!r}, "network"
    config.data.name, config.data.per_class = "digits", 2
    config.data.image_size, config.data.resize = 64, 72
    config.recipe, config.convention = "afa", "normalised"
    config.batch_size, config.steps, config.learning_rate = {batch}, 2, 1e-6
    return config
"""


def starts(network: str, repeats: int, before: Path | None = None) -> dict[str, Any]:
    """Seconds of each start, with nothing compiled yet (and, for the two stages, no image decoded) and again.

    Args:
      network: one of `NETWORKS`, whose two stages, of two steps each, are run to their end.
      repeats: of the starts with what has been compiled, whose median is told.
      before: another checkout of the package, measured in turn.

    Raises:
      UserError: `before` is no checkout of the package, or a run has failed.
    """
    if before and not (before / "afa_jax" / "main.py").is_file():
        raise UserError(f"{before} is no checkout of afa_jax: it has no file afa_jax/main.py.")
    trees = {"now": ROOT, **({"before": before.resolve()} if before else {})}
    with TemporaryDirectory() as folder:
        caches = {name: Path(folder) / name for name in trees}
        config = Path(folder) / "two_stages.py"
        saved = Path(folder) / "source"
        weights.save(saved, network, zoo.initialise(zoo.create(network, 1000), jax.random.key(0), 64))
        config.write_text(TWO_STAGES.format(network=network, weights=str(saved), batch=4 * jax.device_count()))
        quickstart = ("--config", str(ROOT / "configs" / "quickstart.py"), *QUICKSTART)
        for name, tree in trees.items():  # the source network is trained once
            _run(tree, caches[name], (*quickstart, "--config.steps=1"))
        measured: dict[str, Callable[[Path, Path], float]] = {
            "`--help`": lambda tree, cache: _run(tree, cache, ["--help"]),
            "the quickstart's first step": partial(_run, arguments=quickstart, until_first_line=True),
            f"two stages of two steps, {network}": partial(_run, arguments=("--config", str(config))),
        }
        rows = [{"what": what, **_row(call, trees, caches, repeats)} for what, call in measured.items()]
    head = ["from the command to", *(f"{when}{mark}" for mark in _marks(trees) for when in ("first, s", "again, s"))]
    return {"network": network, "rows": rows, "table": [head, *(_cells(row, trees) for row in rows)]}


def _row(
    call: Callable[[Path, Path], float], trees: dict[str, Path], caches: dict[str, Path], repeats: int
) -> dict[str, dict[str, Any]]:
    row: dict[str, dict[str, Any]] = {name: {"again": []} for name in trees}
    for name, tree in trees.items():
        shutil.rmtree(caches[name] / "programs", ignore_errors=True)
        row[name]["first"] = call(tree, caches[name])
    for _ in range(repeats):
        for name, tree in trees.items():
            row[name]["again"].append(call(tree, caches[name]))
    return row


def _marks(trees: dict[str, Path]) -> list[str]:
    return [f" ({name})" if len(trees) > 1 else "" for name in trees]


def _cells(row: dict[str, Any], trees: dict[str, Path]) -> list[str]:
    return [row["what"], *(f"{s:.1f}" for n in trees for s in (row[n]["first"], statistics.median(row[n]["again"])))]


def _run(tree: Path, cache: Path, arguments: Sequence[str], until_first_line: bool = False) -> float:
    """Seconds until the process ends, or until its journal has a line, after which it is stopped."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-m", "afa_jax.main", *arguments]
    with TemporaryDirectory() as folder, TemporaryFile("w+") as errors:
        own = [] if "--help" in arguments else [f"--workdir={folder}/run", "--config.log_every=1"]
        journal = Path(folder) / "run" / "metrics.jsonl"
        begun = time.perf_counter()
        process = subprocess.Popen(
            [*command, *own],
            cwd=tree,
            env={**environment, "AFA_JAX_CACHE": str(cache)},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            while process.poll() is None and not (until_first_line and journal.exists() and journal.stat().st_size):
                time.sleep(0.01)
            seconds = time.perf_counter() - begun
            status = process.poll()
        finally:
            process.kill()
            process.wait()
        if status:
            errors.seek(0)
            said = (errors.read().strip().splitlines() or ["it ended"])[-1][:200]
            raise UserError(f"{shlex.join(command[1:])} in {tree} failed: {said}")
    return seconds
