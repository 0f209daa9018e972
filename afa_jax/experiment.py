"""One experiment from its config to its summaries: the only place that knows the whole story."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from afa_jax import __version__, hosts, measures, plan, trees
from afa_jax.data import catalog
from afa_jax.data.dataset import Dataset, Request, Split
from afa_jax.errors import DivergedError, UserError
from afa_jax.evaluation import verification
from afa_jax.evaluation.classification import Aligned, evaluate
from afa_jax.files import cache_folder, write_json
from afa_jax.measures import MEASURES, measure, told
from afa_jax.models import weights, zoo
from afa_jax.plan import anatomy, build, check_taps, data_request, planned_stages, run_identity, source_request
from afa_jax.provenance import device, versions
from afa_jax.settings import Experiment, identity, to_json
from afa_jax.training.checkpoint import Checkpoints
from afa_jax.training.journal import Journal, opened
from afa_jax.training.loop import Cadence, Pace, train_stage
from afa_jax.training.objective import Task
from afa_jax.training.optimizer import Sgd
from afa_jax.training.parallel import Devices
from afa_jax.training.prepare import prepare
from afa_jax.training.step import TrainState, init_state
from afa_jax.training.workdir import MODEL, SUMMARY, claim, fingerprint, finished, sign
from afa_jax.transfer.method import Frozen, Need
from afa_jax.transfer.recipes import RECIPES, Recipe, Stage, hand_over, needs
from afa_jax.types import PyTree, Variables


def run(experiment: Experiment, workdir: Path, *, wait: bool = False, command: str = "") -> dict[str, Any]:
    """One recipe with one seed in `workdir`; a run that was stopped goes on, a finished one is only told.

    Every host's process comes here; all but the first are silent.

    Args:
      wait: for another process that works in `workdir`, in place of refusing.
      command: the shell command that makes this run, for the summary.

    Returns:
      The summary, as in `summary.json`.

    Raises:
      UserError: whatever the user can mend.
      Stopped: SIGTERM has come.
    """
    # What `auto` means here, so that a run is not gone on with in another precision on another machine.
    experiment = dataclasses.replace(experiment, dtype=plan.resolved_dtype(experiment))
    with claim(workdir, run_identity(experiment), wait=wait):
        summary = hosts.agreed(lambda: finished(workdir))
        if summary is None:
            Devices(experiment.parallel).check("batch_size", experiment.batch_size, experiment.accumulate)
            summary = Run(experiment, workdir, command).train()
        elif hosts.first():
            print(f"{workdir}: finished already, {told(summary)}.")
        return summary


def source_network(experiment: Experiment) -> Path:
    """The saved source network; with `source.weights = "train"` it is trained once and kept in the cache."""
    source = experiment.source
    if source.weights != "train":
        return Path(source.weights)
    training = plan.source_experiment(experiment)
    # A person's own pictures may change under the same name.
    images = _load(source.dataset, data_request(training)).key if source.dir else ""
    key = sha256(repr((__version__, identity(training), images)).encode()).hexdigest()[:12]
    folder = cache_folder() / "sources" / f"{source.dataset.replace(':', '-')}-{experiment.network}-{key}"
    if not hosts.agreed(lambda: finished(folder) is not None):
        labels = _load(source.dataset, data_request(training)).test.labels
        training = dataclasses.replace(training, fars=plan.source_rates(training, labels))
        Devices(experiment.parallel).check("source.batch_size", source.batch_size, 1)
        if hosts.first():
            print(f"Training the source network on {source.dataset}, once; it is kept in {folder}.")
        try:
            run(training, folder, wait=True)
        except DivergedError as error:
            raise UserError(f"Training the source network failed, lower source.learning_rate. {error}") from error
    return folder / MODEL


class Run:
    """One run: what it is made of, and its stages one after the other."""

    def __init__(self, experiment: Experiment, workdir: Path, command: str = ""):
        self.experiment, self.workdir, self.command = experiment, workdir, command
        self.recipe: Recipe = RECIPES[experiment.recipe]
        self.stages = planned_stages(experiment)
        self.devices = Devices(experiment.parallel)
        self.network = zoo.NETWORKS[experiment.network]
        self.preprocess = plan.preprocess(experiment)
        self.anatomy = anatomy(self.network)
        self.dtype = jnp.dtype(plan.resolved_dtype(experiment))
        check_taps(experiment, self.stages)
        if self.recipe.start == "source" and experiment.source.weights != "train":
            weights.find(experiment.network, experiment.source.weights)  # before images are decoded
        self.data: Dataset = _load(experiment.data.name, data_request(experiment))
        self.rates = plan.rates(experiment, self.data.test.labels) if self.data.held_out else ()
        self.target = build(experiment, len(self.data.classes), self.dtype)

    def train(self) -> dict[str, Any]:
        e = self.experiment
        first, teacher_module, source = self.start()
        source_images = self._source_images(source)
        sign(self.workdir, run_identity(e), fingerprint(source), self.data.key)
        trained: list[tuple[Variables, PyTree]] = []
        pace = Pace()
        steps = {stage.name: stage.steps for stage in self.stages}
        with opened(self.workdir, f"{e.recipe} seed {e.seed}", steps) as journal:
            for i, stage in enumerate(self.stages):
                variables, teacher = self.begin(stage, first, source, [earlier for earlier, _ in trained])
                measured, attention = trained[stage.measures] if trained else (first, {})
                task = self.task(stage, teacher_module)
                frozen = prepare(
                    task,
                    Frozen(teacher=teacher),
                    self.data.train,
                    before=measured,
                    attention=attention,
                    seed=e.seed,
                    file=self.constants_file(i),
                    tell=journal.say,
                )
                state = self.devices.local(self._stage(i, task, variables, frozen, source_images, journal, pace))
                result = {"params": state.params["target"], "batch_stats": state.batch_stats}
                trained.append((result, state.params["attention"]))
            verified = self._verify(self.devices.replicate(trained[-1][0])) if self.data.held_out else {}
            return hosts.agreed(lambda: self._finish(trained, verified, journal, pace))

    def start(self) -> tuple[Variables, nn.Module, Variables | None]:
        """(the target's first variables, the teacher's module, its variables or None where no stage looks at it)."""
        e, name = self.experiment, self.experiment.network
        head_key = jax.random.fold_in(jax.random.PRNGKey(e.seed), 0)
        if self.recipe.start == "random":
            return zoo.initialise(self.target, head_key, self.preprocess.size), self.target, None
        path = source_network(e)
        try:
            source = weights.load(name, path)
        except weights.MisfitError as error:
            heads = tuple(f"{head}." for head in self.network.heads)
            lacking = [key for keys in error.faults.values() for key in keys]
            if Need.SOURCE_HEAD in needs(self.recipe) and all(key.startswith(heads) for key in lacking):
                raise UserError(
                    f"{e.recipe} needs the source network's classification layer, and {path} has none that fits: "
                    f"give a file with {', '.join(lacking)} as source.weights."
                ) from error
            raise
        if Need.SOURCE_HEAD in needs(self.recipe):
            self._check_head(source, path)
        target = weights.with_new_head(source, name, len(self.data.classes), head_key)
        return target, build(e, self._source_classes(source), self.dtype), source

    def _check_head(self, source: Variables, path: Path) -> None:
        """Holds that the source network has a classification layer, and that it is read as it was trained."""
        e = self.experiment
        if not self._source_classes(source):
            raise UserError(
                f"{e.recipe} needs the source network's classification layer, and {path} has none: give a file with "
                "it as source.weights, or choose another recipe."
            )
        trained = weights.about(e.network, path).get("loss", e.loss.name)
        if trained != e.loss.name:
            raise UserError(
                f"{e.recipe} keeps the source network's classification layer, which was trained by {trained} and says "
                f"nothing by {e.loss.name}: set config.loss.name={trained}, or choose another recipe."
            )

    def begin(
        self, stage: Stage, first: Variables, source: Variables | None, trained: Sequence[Variables]
    ) -> tuple[Variables, Variables | None]:
        """(the target, its teacher) at a stage's beginning.

        Args:
          first, source: the target's first variables and the source network's, as `start` gives them.
          trained: what each of the earlier stages made of the target.
        """
        before, teacher = trained[-1] if trained else first, source
        if stage.teacher == "previous" and source is not None:
            teacher = hand_over(before, source, self.network.heads)
        return first if stage.start == "source" else before, teacher

    def task(self, stage: Stage, teacher: nn.Module) -> Task:
        """What the compiled step of a stage depends on."""
        e = self.experiment
        sgd = Sgd(e.momentum, e.head_rate, e.attention_rate)
        return Task(self.target, teacher, self.anatomy, stage, self.preprocess, sgd, e.accumulate, e.remat, e.loss)

    def _source_classes(self, source: Variables) -> int:
        return trees.get(source["params"], self.network.head)["kernel"].shape[-1]

    def _source_images(self, source: Variables | None) -> Split | None:
        """The source task's training images, if a method wants them beside the target's."""
        if source is None or Need.SOURCE_BATCHES not in needs(self.recipe):
            return None
        e, wanted = self.experiment, self._source_classes(source)
        advice = (
            f"{e.recipe} needs images and labels of the source task: set source.dataset to the data set on which the "
        )
        advice += "source network was trained"
        try:
            data = _load(e.source.dataset, source_request(e))
        except UserError as error:
            raise UserError(f"{advice}. {error}") from error
        if len(data.classes) != wanted:
            raise UserError(f"{advice}; {e.source.dataset} has {len(data.classes)} classes and its head {wanted}.")
        if tuple(weights.about(e.network, source_network(e)).get("classes", data.classes)) != data.classes:
            raise UserError(f"{advice}; {e.source.dataset} has other classes than those of its head.")
        return data.train

    def _stage(
        self,
        i: int,
        task: Task,
        variables: Variables,
        frozen: Frozen,
        source_images: Split | None,
        journal: Journal,
        pace: Pace,
    ) -> TrainState:
        e, stage = self.experiment, task.stage
        key = jax.random.fold_in(jax.random.PRNGKey(e.seed), i + 1)
        images = jnp.asarray(self.data.train.images[:1])
        state = self.devices.replicate(init_state(task, variables, frozen, images, key))
        with closing(Checkpoints(self.checkpoint_folder(i), e.keep_checkpoints, journal.say)) as checkpoints:
            if found := checkpoints.restore(state):
                state, records = found
                journal.begin(stage.name, int(state.step), records)
            if int(state.step) == stage.steps:
                return state
            if hosts.first():
                for later in range(i + 1, len(self.stages)):  # they belong to a teacher that is trained anew
                    shutil.rmtree(self.checkpoint_folder(later), ignore_errors=True)
                    self.constants_file(later).unlink(missing_ok=True)
            if state.step > 0:
                journal.say(f"{self.workdir}: goes on after step {int(state.step)} of stage {stage.name}.")
            everywhere = self.devices.replicate(frozen)
            return train_stage(
                self.devices.compile(task, lambda sentence: journal.say(f"{stage.name}: {sentence}")),
                state,
                everywhere,
                stage,
                self.data.train,
                devices=self.devices,
                batch_size=e.batch_size,
                seed=e.seed,
                source=source_images,
                cadence=Cadence(e.log_every, e.eval_every, e.checkpoint_every),
                journal=journal,
                checkpoints=checkpoints,
                evaluate=lambda s: self._test(task, s, everywhere),
                pace=pace,
            )

    def checkpoint_folder(self, i: int) -> Path:
        return self.workdir / "checkpoints" / f"{i + 1}-{self.stages[i].name}"

    def constants_file(self, i: int) -> Path:
        return self.workdir / "constants" / f"{i + 1}-{self.stages[i].name}.safetensors"

    def _test(self, task: Task, state: TrainState, frozen: Frozen) -> Mapping[str, float]:
        e, variables = self.experiment, {"params": state.params["target"], "batch_stats": state.batch_stats}
        if self.data.held_out:
            first, *others = self._verify(variables)["tar_at_far"]
            return {"tar": first["tar"], **{f"tar@{other['far']:g}": other["tar"] for other in others}}
        has = task.stage.method.has_test_penalty
        aligned = Aligned(task, state.params["attention"], frozen, e.batch_size) if has else None
        return evaluate(self.target, variables, self.data.test, self.preprocess, e.eval_batch_size, aligned)

    def _verify(self, variables: Variables) -> dict[str, Any]:
        """How well the held-out identities are told apart; `variables` lie on every device."""
        e, layer = self.experiment, f"{self.anatomy.embedding}{zoo.INPUT}"
        made = verification.embed(self.target, variables, self.data.test, self.preprocess, e.eval_batch_size, layer)
        return verification.verify(made, self.data.test.labels, self.rates)

    def _result(self, stage: Stage, journal: Journal) -> dict[str, Any]:
        """What the journal says of a finished stage."""
        tests = [r for r in journal.records if r["stage"] == stage.name and r["split"] == "test"]
        name = next(name for name in MEASURES if name in tests[-1])
        losses = {"last_cross_entropy": tests[-1]["cross_entropy"]} if name == "top1" else {}
        about = {"name": stage.name, "steps": stage.steps, "kept": stage.kept}
        best = max(r[name] for r in tests)
        return {**about, f"last_{name}": tests[-1][name], f"best_test_{name}": best, **losses}

    def _finish(
        self, trained: list[tuple[Variables, PyTree]], verified: Mapping[str, Any], journal: Journal, pace: Pace
    ) -> dict[str, Any]:
        e, (variables, _) = self.experiment, trained[-1]
        weights.save(self.workdir / MODEL, e.network, variables, classes=self.data.classes, loss=e.loss.name)
        results = [self._result(stage, journal) for stage in self.stages]
        name = measure(results[-1])
        attention = {stage.name: trees.size(own) for stage, (_, own) in zip(self.stages, trained, strict=True)}
        summary = {
            "experiment": to_json(e),
            "recipe": e.recipe,
            "seed": e.seed,
            "command": self.command,
            "parameters": {"network": trees.size(variables["params"]), "attention": attention},
            "train_images": len(self.data.train),
            "test_images": len(self.data.test),
            **({"damaged": self.data.damaged} if self.data.damaged else {}),
            "stages": results,
            f"last_{name}": results[-1][f"last_{name}"],
            f"best_test_{name}": max(result[f"best_test_{name}"] for result in results if result["kept"]),
            **({"verification": verified} if verified else {}),
            "train_images_per_second": round(pace.images_per_second, 1),
            "waiting_for_data_share": round(pace.waiting_share, 4),
            "device": device(),
            "versions": versions(),
            "finished": datetime.now(UTC).date().isoformat(),
        }
        write_json(self.workdir / SUMMARY, summary)
        for sentence in measures.verified(verified) if verified else ():
            journal.say(sentence)
        journal.say(
            f"{self.workdir}: {told(summary)} on {len(self.data.test)} test images, "
            f"{pace.images_per_second:,.0f} training images/s."
        )
        return summary


@lru_cache(maxsize=4)
def _load(name: str, request: Request) -> Dataset:
    return catalog.load(name, request)
