"""One training step, pure: (state, frozen, batch) to (state, metrics)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.core import FrozenDict
from jax import Array
from jax.typing import ArrayLike

from afa_jax import trees
from afa_jax.data.augment import Preprocess
from afa_jax.models import zoo
from afa_jax.training.optimizer import Sgd, make_optimizer, schedule
from afa_jax.transfer.method import EMBEDDING, Anatomy, Context, Frozen, Need, Start
from afa_jax.transfer.recipes import Stage
from afa_jax.types import Batch, Outputs, PyTree, Variables

Metrics = Mapping[str, Array]
Step = Callable[["TrainState", Frozen, Batch], tuple["TrainState", Metrics]]


class TrainState(struct.PyTreeNode):
    """All that a step changes; a checkpoint is exactly this."""

    step: Array
    """int32, steps done in this stage."""
    params: dict[str, PyTree]
    """`{"target": …, "attention": …}`."""
    batch_stats: PyTree
    opt_state: PyTree
    rng: Array
    """The stage's key; the key of a step is folded in from it."""


@dataclass(frozen=True)
class Task:
    """What one compiled step depends on besides its arguments.

    Attributes:
      target, teacher: the networks; they differ in the size of their heads only.
      anatomy: of both.
    """

    target: nn.Module
    teacher: nn.Module
    anatomy: Anatomy
    stage: Stage
    preprocess: Preprocess
    sgd: Sgd


def init_state(task: Task, variables: Mapping[str, PyTree], frozen: Frozen, images: Array, key: Array) -> TrainState:
    """The state before a stage's first step: the target as given, attention and optimizer new.

    `variables` is copied, because the step gives the state's memory away and the teacher may share it.

    Args:
      images: at least one training image, for the shapes of the features.
    """
    attention_key, rng = jax.random.split(key)
    copy = jax.tree.map(jnp.copy, dict(variables))
    params = {"target": copy["params"], "attention": _init_attention(task, frozen, images, attention_key)}
    opt_state = make_optimizer(task.stage, task.anatomy.head, task.sgd).init(params)
    state = TrainState(jnp.int32(0), params, copy.get("batch_stats", {}), opt_state, rng)
    # On one device by name, as a restored state is, so that both use the same compiled step.
    return jax.device_put(state, jax.local_devices()[0])


@partial(jax.jit, static_argnums=0)
def _init_attention(task: Task, frozen: Frozen, images: Array, key: Array) -> PyTree:
    outputs = _teach(task, frozen, task.preprocess.test(images))
    source_head = trees.get(frozen.teacher["params"], task.anatomy.head) if frozen.teacher else {}
    return task.stage.method.init(key, Start(outputs.features if outputs else {}, source_head))


def _teach(task: Task, frozen: Frozen, images: Array) -> Outputs | None:
    """The frozen network's outputs. In a compiled step, all behind the last tap is dropped unless it is used."""
    if Need.TEACHER_FEATURES not in task.stage.method.needs:
        return None
    assert frozen.teacher is not None
    return jax.lax.stop_gradient(zoo.forward(task.teacher, frozen.teacher, images, taps=task.stage.taps))


def _look(task: Task, variables: Variables, images: Array, key: Array) -> Outputs:
    """The target's outputs in a step: features at the taps and, for a method that needs it, the embedding."""
    method, embedding = task.stage.method, f"{task.anatomy.embedding}{zoo.INPUT}"
    taps = task.stage.taps if Need.TEACHER_FEATURES in method.needs else ()
    wanted = (*taps, embedding) if Need.EMBEDDING in method.needs else taps
    train = not method.head_only
    outputs = zoo.forward(task.target, variables, images, taps=wanted, train=train, rngs={"dropout": key})
    names = {embedding: EMBEDDING}
    return outputs._replace(features={names.get(tap, tap): value for tap, value in outputs.features.items()})


@lru_cache(maxsize=32)
def compile_step(task: Task) -> Step:
    """`make_step` compiled for the default device; the state's memory is reused.

    Seeds share one compilation, and so do all alphas and betas: they are arguments of it.
    """
    settings = task.stage.settings
    unweighted = FrozenDict({**settings, "alpha": 0.0, "beta": 0.0})
    compiled = _compile(replace(task, stage=replace(task.stage, settings=unweighted)))
    return partial(compiled, alpha=settings["alpha"], beta=settings["beta"])


@lru_cache(maxsize=32)
def _compile(task: Task) -> Callable[..., tuple[TrainState, Metrics]]:
    def step(state: TrainState, frozen: Frozen, batch: Batch, alpha: Array, beta: Array) -> tuple[TrainState, Metrics]:
        return make_step(task, alpha, beta)(state, frozen, batch)

    return jax.jit(step, donate_argnums=0)


def make_step(task: Task, alpha: ArrayLike | None = None, beta: ArrayLike | None = None) -> Step:
    """The pure step of a stage: cross-entropy + alpha·Ω + beta·½·‖head‖² (AFA eq. 4) and one move of SGD.

    The target runs in train mode, the teacher in eval mode (as released, so Ω > 0 already at the first step). Metrics
    are scalars of the batch before the move; `alignment` is Ω without alpha, `alignment/<tap>` its parts.

    Args:
      alpha, beta: in place of the stage's.
    """
    stage, method, optimizer = task.stage, task.stage.method, make_optimizer(task.stage, task.anatomy.head, task.sgd)
    alpha, beta = (stage.settings[n] if w is None else w for n, w in (("alpha", alpha), ("beta", beta)))
    rate = schedule(stage)

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        augment_key, dropout_key, source_key = jax.random.split(jax.random.fold_in(state.rng, state.step), 3)
        images, labels = task.preprocess.train(augment_key, batch["image"]), batch["label"]
        teacher = _teach(task, frozen, images)

        def loss_fn(params: dict[str, PyTree]) -> tuple[Array, tuple[Metrics, PyTree]]:
            if method.head_only:
                params = {**params, "target": _hold_backbone(params["target"], task.anatomy)}
            variables = {"params": params["target"], "batch_stats": state.batch_stats}
            target, source = _look(task, variables, images, dropout_key), None
            if Need.SOURCE_BATCHES in method.needs:
                keys = jax.random.split(source_key)
                source = _look(task, variables, task.preprocess.train(keys[0], batch["source"]["image"]), keys[1])
            progress = state.step / stage.steps
            context = Context(params, target, teacher, frozen, batch, progress, stage.settings, task.anatomy, source)
            scale = len(labels) if stage.settings["convention"] in method.batch_sum else 1
            terms = {f"alignment/{name}": scale * term.mean() for name, term in method.penalty(context).items()}
            parts = {
                "cross_entropy": optax.softmax_cross_entropy_with_integer_labels(target.logits, labels).mean(),
                **terms,
                "alignment": sum(terms.values(), jnp.float32(0)),
                "head_penalty": 0.5 * optax.tree.norm(trees.get(params["target"], task.anatomy.head), squared=True),
            }
            loss = parts["cross_entropy"] + alpha * parts["alignment"] + beta * parts["head_penalty"]
            top1 = (target.logits.argmax(-1) == labels).mean()
            return loss, ({**parts, "loss": loss, "top1": top1}, target.batch_stats)

        grads, (metrics, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {**metrics, "gradient_norm": optax.tree.norm(grads), "learning_rate": rate(state.step)}
        new_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return new_state, metrics

    return step


def _hold_backbone(params: PyTree, anatomy: Anatomy) -> PyTree:
    """The target's parameters, of which only the heads let a gradient through; its backward pass then ends there."""
    held = jax.lax.stop_gradient(params)
    for head in anatomy.heads:
        held = trees.put(held, head, trees.get(params, head))
    return held
