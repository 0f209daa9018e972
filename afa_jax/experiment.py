"""One experiment from its config to its summaries: the only place that knows the whole story."""

import dataclasses
import importlib.metadata
import itertools
import os
import platform
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from afa_jax import __version__, trees
from afa_jax.config import Data, Experiment, identity, image_sizes, to_json
from afa_jax.data import catalog
from afa_jax.data.augment import Preprocess
from afa_jax.data.dataset import Dataset
from afa_jax.errors import DivergedError, UserError, nearest
from afa_jax.evaluation.classification import evaluate
from afa_jax.files import cache_folder, write_json
from afa_jax.models import weights, zoo
from afa_jax.report import tables
from afa_jax.training.checkpoint import Checkpoints
from afa_jax.training.journal import METRICS, Journal
from afa_jax.training.loop import Cadence, Pace, train_stage
from afa_jax.training.optimizer import Sgd
from afa_jax.training.step import Task, TrainState, compile_step, init_state
from afa_jax.training.workdir import CONFIG, MODEL, SUMMARY, claim, fingerprint, finished, sign
from afa_jax.transfer.methods import Frozen
from afa_jax.transfer.recipes import RECIPES, Recipe, Stage, hand_over, stages
from afa_jax.types import Variables

COMPARISON = "comparison.json"


def run_all(experiment: Experiment, root: Path) -> list[dict[str, Any]]:
    """Every recipe with every seed, each in `root/<recipe>/seed<n>`; ends with the table of all.

    A run that diverges is told and does not stop the others.

    Raises:
      DivergedError: after the others are done, if a run diverged.
    """
    if (root / CONFIG).exists():
        raise UserError(
            f"The workdir {root} holds a single run and cannot hold a comparison: choose another with --workdir."
        )
    begun = time.perf_counter()
    seeds = range(experiment.seed, experiment.seed + experiment.seeds)
    summaries, failures = [], []
    failed = dict.fromkeys(experiment.recipes, 0)
    # Seed by seed, so that an early look at an unfinished comparison sees every recipe.
    for seed, recipe in itertools.product(seeds, experiment.recipes):
        one = dataclasses.replace(experiment, recipe=recipe, seed=seed, seeds=1)
        try:
            summaries.append(run(one, root / recipe / f"seed{seed}"))
        except DivergedError as error:
            failed[recipe] += 1
            failures.append(f"{recipe}, seed {seed}: {error}")
    table = tables.rows(summaries, failed)
    print(f"\nTop-1 on the test split at the last step, mean ± standard deviation over {len(seeds)} seed(s):\n")
    print(tables.text(table))
    print(f"\nFiles of each run: {root}/<recipe>/seed<n>   ({time.perf_counter() - begun:.0f} s)")
    runs = [{key: s[key] for key in s if key not in ("experiment", "stages")} for s in summaries]
    write_json(root / COMPARISON, {"experiment": to_json(experiment), "failed": failed, "runs": runs})
    if failures:
        raise DivergedError(f"{len(failures)} of {len(failures) + len(summaries)} runs diverged: {failures[0]}")
    return summaries


def run(experiment: Experiment, workdir: Path, *, wait: bool = False) -> dict[str, Any]:
    """One recipe with one seed in `workdir`; a run that was stopped goes on, a finished one is only told.

    Args:
      wait: for another process that works in `workdir`, in place of refusing.

    Returns:
      The summary, as in `summary.json`.

    Raises:
      UserError: whatever the user can mend.
    """
    with claim(workdir, identity(experiment), wait=wait):
        summary = finished(workdir)
        if summary is None:
            summary = _Run(experiment, workdir).train()
        else:
            print(f"{workdir}: finished already, top-1 {100 * summary['last_top1']:.1f} %.")
        return summary


def source_network(experiment: Experiment) -> Path:
    """The saved source network; with `source.weights = "train"` it is trained once and kept in the cache."""
    source = experiment.source
    if source.weights != "train":
        return Path(source.weights)
    size, resize = image_sizes(experiment)
    training = Experiment(
        data=Data(source.dataset, image_size=size, resize=resize),
        network=experiment.network,
        recipe="scratch",
        batch_size=source.batch_size,
        steps=source.steps,
        learning_rate=source.learning_rate,
        dtype=jnp.dtype(_dtype(experiment.dtype)).name,
    )
    key = sha256(repr((__version__, identity(training))).encode()).hexdigest()[:12]
    folder = cache_folder() / "sources" / f"{source.dataset}-{experiment.network}-{key}"
    if finished(folder) is None:
        print(f"Training the source network on {source.dataset}, once; it is kept in {folder}.")
        try:
            run(training, folder, wait=True)
        except DivergedError as error:
            raise UserError(f"Training the source network failed, lower source.learning_rate. {error}") from error
    return folder / MODEL


class _Run:
    """One run: what it is made of, and its stages one after the other."""

    def __init__(self, experiment: Experiment, workdir: Path):
        self.experiment, self.workdir = experiment, workdir
        self.recipe: Recipe = RECIPES[experiment.recipe]
        self.stages = _stages(experiment)
        self.network = zoo.NETWORKS[experiment.network]
        size, resize = image_sizes(experiment)
        self.preprocess = Preprocess(
            size, catalog.CATALOG[experiment.data.name].mirrored, self.network.mean, self.network.std
        )
        self.dtype = _dtype(experiment.dtype)
        _check_taps(experiment, self.stages, size)
        self.data: Dataset = _load(experiment.data.name, resize, experiment.data.per_class, experiment.seed)
        self.target = zoo.create(experiment.network, len(self.data.classes), self.dtype)

    def train(self) -> dict[str, Any]:
        e = self.experiment
        variables, teacher_module, source = self._start()
        sign(self.workdir, identity(e), fingerprint(source))
        teacher = source
        pace = Pace()
        title = f"{e.recipe} seed {e.seed}"
        journal = Journal(self.workdir, title, {stage.name: stage.steps for stage in self.stages})
        try:
            for i, stage in enumerate(self.stages):
                if i and teacher is not None and stage.teacher == "previous":
                    teacher = hand_over(variables, teacher, self.network.heads)
                frozen = jax.device_put(Frozen(teacher=teacher), jax.local_devices()[0])
                state = self._stage(i, stage, variables, teacher_module, frozen, journal, pace)
                variables = {"params": state.params["target"], "batch_stats": state.batch_stats}
            return self._finish(variables, journal, pace)
        finally:
            journal.close()

    def _start(self) -> tuple[Variables, nn.Module, Variables | None]:
        """(the target's first variables, the teacher's module, its variables or None where no stage looks at it)."""
        e, name = self.experiment, self.experiment.network
        head_key = jax.random.fold_in(jax.random.PRNGKey(e.seed), 0)
        if self.recipe.start == "random":
            return zoo.initialise(self.target, head_key, self.preprocess.size), self.target, None
        path = source_network(e)
        source = weights.load(name, path)
        target = weights.with_new_head(source, name, len(self.data.classes), head_key)
        outputs = trees.get(source["params"], self.network.head)["bias"].shape[0]
        return target, zoo.create(name, outputs, self.dtype), source

    def _stage(
        self,
        i: int,
        stage: Stage,
        variables: Variables,
        teacher_module: nn.Module,
        frozen: Frozen,
        journal: Journal,
        pace: Pace,
    ) -> TrainState:
        e = self.experiment
        sgd = Sgd(e.momentum, e.head_rate, e.attention_rate)
        task = Task(self.target, teacher_module, self.network.head, stage, self.preprocess, sgd)
        key = jax.random.fold_in(jax.random.PRNGKey(e.seed), i + 1)
        state = init_state(task, variables, frozen, jnp.asarray(self.data.train.images[:1]), key)
        checkpoints = Checkpoints(self._checkpoint_folder(i), e.keep_checkpoints, journal.say)
        try:
            state = checkpoints.restore(state) or state
            if state.step == stage.steps:
                self._result(stage, journal)  # or the next stage would be trained in vain
                return state
            for later in range(i + 1, len(self.stages)):  # they belong to a teacher that is trained anew
                shutil.rmtree(self._checkpoint_folder(later), ignore_errors=True)
            if state.step > 0:
                journal.say(f"{self.workdir}: goes on after step {int(state.step)} of stage {stage.name}.")
            return train_stage(
                compile_step(task),
                state,
                frozen,
                stage,
                self.data.train,
                batch_size=e.batch_size,
                seed=e.seed,
                # Batches are counted through the run, so that recipes of one and of two stages see the same ones.
                first_batch=sum(before.steps for before in self.stages[:i]),
                cadence=Cadence(e.log_every, e.eval_every, e.checkpoint_every),
                journal=journal,
                checkpoints=checkpoints,
                evaluate=lambda s: self._test({"params": s.params["target"], "batch_stats": s.batch_stats}),
                pace=pace,
            )
        finally:
            checkpoints.close()

    def _checkpoint_folder(self, i: int) -> Path:
        return self.workdir / "checkpoints" / f"{i + 1}-{self.stages[i].name}"

    def _test(self, variables: Variables) -> Mapping[str, float]:
        return evaluate(self.target, variables, self.data.test, self.preprocess, self.experiment.eval_batch_size)

    def _result(self, stage: Stage, journal: Journal) -> dict[str, Any]:
        """What the journal says of a finished stage."""
        tests = [r for r in journal.records if r["stage"] == stage.name and r["split"] == "test"]
        if not tests or tests[-1]["step"] != stage.steps:
            raise UserError(
                f"{self.workdir / METRICS} is damaged, the result of stage {stage.name} is gone: remove {self.workdir} "
                "and start again."
            )
        return {
            "name": stage.name,
            "steps": stage.steps,
            "last_top1": tests[-1]["top1"],
            "best_test_top1": max(r["top1"] for r in tests),
            "last_loss": tests[-1]["loss"],
        }

    def _finish(self, variables: Variables, journal: Journal, pace: Pace) -> dict[str, Any]:
        e = self.experiment
        weights.save(self.workdir / MODEL, e.network, variables, classes=self.data.classes)
        results = [self._result(stage, journal) for stage in self.stages]
        summary = {
            "experiment": to_json(e),
            "recipe": e.recipe,
            "seed": e.seed,
            "train_images": len(self.data.train),
            "test_images": len(self.data.test),
            "stages": results,
            "last_top1": results[-1]["last_top1"],
            "best_test_top1": max(result["best_test_top1"] for result in results),
            "train_images_per_second": round(pace.images_per_second, 1),
            "device": _device(),
            "versions": _versions(),
            "finished": datetime.now(UTC).date().isoformat(),
        }
        write_json(self.workdir / SUMMARY, summary)
        journal.say(
            f"{self.workdir}: top-1 {100 * summary['last_top1']:.1f} % on {len(self.data.test)} test images, "
            f"{pace.images_per_second:,.0f} training images/s."
        )
        return summary


def _stages(e: Experiment) -> tuple[Stage, ...]:
    return stages(
        RECIPES[e.recipe],
        steps=e.steps,
        learning_rate=e.learning_rate,
        drop_after=e.drop_after,
        drop=e.drop,
        settings=e.methods,
        convention=e.convention,
        taps=_named_taps(e) or zoo.NETWORKS[e.network].taps[e.taps],
    )


def _named_taps(e: Experiment) -> tuple[str, ...]:
    return tuple(part.strip() for part in e.tap_layers.split(",") if part.strip())


def _check_taps(e: Experiment, planned: tuple[Stage, ...], size: int) -> None:
    """Refuses a wrong tap before anything is trained, the source network included."""
    taps = {tap for stage in planned for tap in stage.taps} | set(_named_taps(e))
    if not taps:
        return
    shapes = zoo.layer_shapes(zoo.create(e.network, 1), size)
    for tap in sorted(taps):
        if tap not in shapes:
            raise UserError(f"The network {e.network} has no layer {tap!r} to tap; {nearest(tap, shapes)}")
        if len(shapes[tap]) != 4:
            maps = [name for name, shape in shapes.items() if len(shape) == 4]
            raise UserError(f"The layer {tap!r} of {e.network} gives no feature map; {nearest(tap, maps)}")


@lru_cache(maxsize=4)
def _load(name: str, size: int, per_class: int, seed: int) -> Dataset:
    return catalog.load(name, size=size, per_class=per_class, seed=seed)


def _dtype(name: str) -> Any:
    if name == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(name)


def _device() -> str:
    if jax.default_backend() == "cpu":
        return f"CPU, {os.cpu_count()} cores"
    return jax.local_devices()[0].device_kind


def _versions() -> dict[str, str]:
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"afa_jax": __version__, "python": platform.python_version(), **versions}
