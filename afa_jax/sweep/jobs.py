"""The runs of a sweep: what each is, where it is, and whether it is finished."""

import ast
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afa_jax.command_line import read_experiment
from afa_jax.plan import planned_stages, run_identity
from afa_jax.settings import Experiment
from afa_jax.sweep.presets import Variant
from afa_jax.training.journal import METRICS, read_metrics
from afa_jax.training.workdir import CONFIG, differences, finished


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
      config: a config file, with the network that it is given behind a colon if it takes one.
      settings: in place of the config's, by their dotted names.
      experiment: what both come to.
      path: of its folder below `root`.
    """

    config: str
    settings: Mapping[str, Any]
    experiment: Experiment
    root: Path
    path: tuple[str, ...]

    @property
    def workdir(self) -> Path:
        return self.root.joinpath(*self.path)

    @property
    def command(self) -> list[str]:
        program = [sys.executable, "-m", "afa_jax.main"]
        return [*program, "--config", self.config, *_flags(self.settings), f"--workdir={self.workdir}"]

    def result(self) -> dict[str, Any] | None:
        """The summary, if this very run is finished there."""
        summary = finished(self.workdir)
        try:
            kept = json.loads((self.workdir / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        own = json.loads(json.dumps(run_identity(self.experiment)))
        if own["dtype"] == "auto":
            own["dtype"] = kept.get("dtype")  # which one it is, only the machine of the run knows
        return summary if not differences(kept, own) else None

    def progress(self) -> float:
        """The share of its steps that is done."""
        stages = planned_stages(self.experiment)
        records = read_metrics(self.workdir / METRICS)
        done = 0
        for stage in stages:
            if not records or stage.name == records[-1]["stage"]:
                break
            done += stage.steps
        return (done + (records[-1]["step"] if records else 0)) / sum(stage.steps for stage in stages)


def plan(
    config: str,
    variants: Iterable[Variant],
    *,
    networks: Sequence[str] = (),
    seeds: Iterable[int] = (0,),
    settings: Mapping[str, Any] | None = None,
    root: Path,
) -> list[Job]:
    """The runs of the variants on the networks, seed by seed, so that an early look sees all of them.

    Each is in `root[/<network>]/<recipe>[/<setting>=<value>,…]/seed<n>`, which tells all that differs from the config:
    tables and figures that want the same run share it.

    Args:
      networks: none: the config's own.
      settings: of all runs, in place of the config's; the folders' names do not tell them.

    Raises:
      UserError: the config, or a setting, is wrong.
    """
    common, variants = dict(settings or {}), list(variants)
    own = read_experiment(config, _flags(common)).network
    jobs = []
    for seed in seeds:
        for network in networks or (own,):
            file, chosen = config, dict(common)
            if network != own and takes_network(config):
                file = f"{config.partition(':')[0]}:{network}"
            elif network != own:
                chosen["network"] = network
            for variant in variants:
                values = chosen | {**variant.settings, "recipe": variant.recipe, "seed": seed, "seeds": 1}
                parts = (network if network != own else "", variant.recipe, variant.told, f"seed{seed}")
                experiment = read_experiment(file, _flags(values))
                jobs.append(Job(file, values, experiment, root, tuple(part for part in parts if part)))
    return jobs


def _flags(settings: Mapping[str, Any]) -> list[str]:
    return [f"--config.{key}={value}" for key, value in settings.items()]


def takes_network(config: str) -> bool:
    """Whether the config wants to be told the network (`configs/x.py:network`), to set what goes with it."""
    try:
        body = ast.parse(Path(config.partition(":")[0]).read_text(encoding="utf-8")).body
    except (OSError, SyntaxError):
        return False  # which is told when it is read as a config
    return any(isinstance(node, ast.FunctionDef) and node.name == "get_config" and node.args.args for node in body)
