"""One training step, pure: (state, frozen, batch) to (state, metrics)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from jax.typing import ArrayLike

from afa_jax import trees
from afa_jax.batch_axis import WHOLE, BatchAxis
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
      accumulate: into how many parts a batch is cut, of which one after the other is on the device.
      remat: compute in the backward pass anew what is cheap, in place of keeping it.
    """

    target: nn.Module
    teacher: nn.Module
    anatomy: Anatomy
    stage: Stage
    preprocess: Preprocess
    sgd: Sgd
    accumulate: int = 1
    remat: bool = False


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
    return TrainState(jnp.int32(0), params, copy.get("batch_stats", {}), opt_state, rng)


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


def _look(task: Task, axis: BatchAxis, variables: Variables, images: Array, key: Array) -> Outputs:
    """The target's outputs in a step: features at the taps and, for a method that needs it, the embedding."""
    method, embedding = task.stage.method, f"{task.anatomy.embedding}{zoo.INPUT}"
    taps = task.stage.taps if Need.TEACHER_FEATURES in method.needs else ()
    wanted = (*taps, embedding) if Need.EMBEDDING in method.needs else taps
    train = not method.head_only

    def run(variables: Variables, images: Array, key: Array) -> Outputs:
        return zoo.forward(task.target, variables, images, taps=wanted, train=train, rngs={"dropout": key}, axis=axis)

    outputs = (jax.checkpoint(run, policy=_is_costly) if task.remat else run)(variables, images, key)
    names = {embedding: EMBEDDING}
    return outputs._replace(features={names.get(tap, tap): value for tap, value in outputs.features.items()})


def _is_costly(primitive: Any, *_: Any, **__: Any) -> bool:
    """What the backward pass does not compute anew: convolutions and products. BatchNorm and ReLU are cheap."""
    return primitive in (jax.lax.conv_general_dilated_p, jax.lax.dot_general_p)


def make_step(
    task: Task, alpha: ArrayLike | None = None, beta: ArrayLike | None = None, axis: BatchAxis = WHOLE
) -> Step:
    """The pure step of a stage: cross-entropy + alpha·Ω + beta·½·‖head‖² (AFA eq. 4) and one move of SGD.

    The target runs in train mode, the teacher in eval mode (as released, so Ω > 0 already at the first step). Metrics
    are scalars of the batch before the move; `alignment` is Ω without alpha, `alignment/<tap>` its parts.

    A batch that is cut into parts (`task.accumulate`) is one move along the mean of their gradients. Each part is
    normalised by its own mean and variance, and moves BatchNorm's running averages once.

    Args:
      alpha, beta: in place of the stage's.
      axis: over which the batch is spread, if the step is mapped over devices.
    """
    stage, method, optimizer = task.stage, task.stage.method, make_optimizer(task.stage, task.anatomy.head, task.sgd)
    alpha, beta = (stage.settings[n] if w is None else w for n, w in (("alpha", alpha), ("beta", beta)))
    rate = schedule(stage)

    def gradients(state: TrainState, frozen: Frozen, batch: Batch, keys: Array) -> tuple[PyTree, PyTree, Metrics]:
        """(gradients, BatchNorm's statistics, metrics) of a preprocessed batch or part of one."""
        labels, teacher = batch["label"], _teach(task, frozen, batch["image"])

        def loss_fn(params: dict[str, PyTree]) -> tuple[Array, tuple[PyTree, Metrics]]:
            if method.head_only:
                params = {**params, "target": _hold_backbone(params["target"], task.anatomy)}
            variables = {"params": params["target"], "batch_stats": state.batch_stats}
            target, source = _look(task, axis, variables, batch["image"], keys[0]), None
            if Need.SOURCE_BATCHES in method.needs:
                source = _look(task, axis, variables, batch["source"]["image"], keys[1])
            progress = state.step / stage.steps
            context = Context(
                params, target, teacher, frozen, batch, progress, stage.settings, task.anatomy, source, axis
            )
            summed = stage.settings["convention"] in method.batch_sum
            scale = len(labels) * axis.size * task.accumulate if summed else 1
            terms = {f"alignment/{name}": scale * term.mean() for name, term in method.penalty(context).items()}
            parts = {
                "cross_entropy": optax.softmax_cross_entropy_with_integer_labels(target.logits, labels).mean(),
                **terms,
                "alignment": sum(terms.values(), jnp.float32(0)),
                "head_penalty": 0.5 * optax.tree.norm(trees.get(params["target"], task.anatomy.head), squared=True),
            }
            loss = parts["cross_entropy"] + alpha * parts["alignment"] + beta * parts["head_penalty"]
            top1 = (target.logits.argmax(-1) == labels).mean()
            return loss, (target.batch_stats, {**parts, "loss": loss, "top1": top1})

        grads, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(state.params)
        return grads, batch_stats, metrics

    def accumulated(state: TrainState, frozen: Frozen, batch: Batch, keys: Array) -> tuple[PyTree, PyTree, Metrics]:
        """`gradients` of the parts of a batch, one after the other, and their means."""

        def add(carry: tuple[PyTree, PyTree], part: tuple[Batch, Array]) -> tuple[tuple[PyTree, PyTree], Metrics]:
            total, batch_stats = carry
            grads, batch_stats, metrics = gradients(state.replace(batch_stats=batch_stats), frozen, *part)
            return (jax.tree.map(jnp.add, total, grads), batch_stats), metrics

        # Every part has images of every device, so that cutting moves none of them.
        number = task.accumulate
        parts = jax.tree.map(lambda x: x.reshape(-1, number, *x.shape[1:]).swapaxes(0, 1), dict(batch))
        part_keys = jax.vmap(lambda key: jax.random.split(key, number), out_axes=1)(keys)
        start = jax.tree.map(jnp.zeros_like, state.params), state.batch_stats
        (total, batch_stats), metrics = jax.lax.scan(add, start, (parts, part_keys))
        mean = partial(jax.tree.map, lambda x: x.mean(0))
        return jax.tree.map(lambda x: x / number, total), batch_stats, mean(metrics)

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        augment_key, dropout_key, source_key = jax.random.split(jax.random.fold_in(state.rng, state.step), 3)
        source_keys = jax.random.split(source_key)
        batch = {**batch, "image": task.preprocess.train(augment_key, batch["image"], axis)}
        if Need.SOURCE_BATCHES in method.needs:
            source_images = task.preprocess.train(source_keys[0], batch["source"]["image"], axis)
            batch["source"] = {**batch["source"], "image": source_images}
        run = accumulated if task.accumulate > 1 else gradients
        grads, batch_stats, metrics = run(state, frozen, batch, jnp.stack([dropout_key, source_keys[1]]))
        grads, metrics = axis.mean((grads, metrics))
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
