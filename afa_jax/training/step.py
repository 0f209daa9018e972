"""One training step, pure: (state, frozen, batch) to (state, metrics)."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from jax.typing import ArrayLike

from afa_jax import trees
from afa_jax.batch_axis import WHOLE, BatchAxis
from afa_jax.training.objective import (
    Task,
    cross_entropies,
    head_penalty,
    hold_backbone,
    look,
    penalties,
    teach,
    total,
)
from afa_jax.training.optimizer import make_optimizer, schedule
from afa_jax.transfer.method import Context, Frozen, Need, Start
from afa_jax.types import Batch, Outputs, PyTree

Metrics = Mapping[str, Array]
Step = Callable[["TrainState", Frozen, Batch], tuple["TrainState", Metrics]]
Gradients = Callable[["TrainState", Frozen, Batch, Array], tuple[PyTree, PyTree, Metrics]]
"""Gradients, BatchNorm's statistics and metrics of a preprocessed batch."""


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


def init_state(task: Task, variables: Mapping[str, PyTree], frozen: Frozen, images: Array, key: Array) -> TrainState:
    """The state before a stage's first step: the target as given, attention and optimizer new.

    `variables` is copied, because the step gives the state's memory away and the teacher may share it.

    Args:
      images: at least one training image, for the shapes of the features.
    """
    outputs = _watch.eval_shape(task, frozen, images)
    features = {tap: jnp.zeros((1, *f.shape[1:]), f.dtype) for tap, f in outputs.features.items()} if outputs else {}
    source_head = trees.get(frozen.teacher["params"], task.anatomy.head) if frozen.teacher else {}
    return _first_state(task, dict(variables), Start(features, source_head), key)


@partial(jax.jit, static_argnums=0)  # which remembers the shapes; it is never run
def _watch(task: Task, frozen: Frozen, images: Array) -> Outputs | None:
    return teach(task, frozen, task.preprocess.test(images))


@partial(jax.jit, static_argnums=0)  # one program in place of one for each array
def _first_state(task: Task, variables: dict[str, PyTree], start: Start, key: Array) -> TrainState:
    attention_key, rng = jax.random.split(key)
    params = {"target": variables["params"], "attention": task.stage.method.init(attention_key, start)}
    opt_state = make_optimizer(task.stage, task.anatomy.head, task.sgd).init(params)
    copy, statistics = jax.tree.map(jnp.copy, (params, variables.get("batch_stats", {})))
    return TrainState(jnp.int32(0), copy, statistics, opt_state, rng)


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
        labels, teacher = batch["label"], teach(task, frozen, batch["image"])

        def loss_fn(params: dict[str, PyTree]) -> tuple[Array, tuple[PyTree, Metrics]]:
            if method.head_only:
                params = {**params, "target": hold_backbone(params["target"], task.anatomy)}
            variables = {"params": params["target"], "batch_stats": state.batch_stats}
            target, source = look(task, axis, variables, batch["image"], keys[0]), None
            if Need.SOURCE_BATCHES in method.needs:
                source = look(task, axis, variables, batch["source"]["image"], keys[1])
            progress = state.step / stage.steps
            context = Context(
                *(params, target, teacher, frozen, batch, progress, stage.settings, task.anatomy, source),
                *(task.classify, axis),
            )
            images = len(labels) * axis.size * task.accumulate
            terms = {name: term.mean() for name, term in penalties(task, context, images).items()}
            parts = {
                "cross_entropy": cross_entropies(task, target, params["target"], labels).mean(),
                **terms,
                "alignment": sum(terms.values(), jnp.float32(0)),
                "head_penalty": head_penalty(task, params["target"]),
            }
            loss = total({"alpha": alpha, "beta": beta}, parts)
            top1 = (target.logits.argmax(-1) == labels).mean()
            return loss, (target.batch_stats, {**parts, "loss": loss, "top1": top1})

        grads, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(state.params)
        return grads, batch_stats, metrics

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        augment_key, dropout_key, source_key = jax.random.split(jax.random.fold_in(state.rng, state.step), 3)
        source_keys = jax.random.split(source_key)
        batch = {**batch, "image": task.preprocess.train(augment_key, batch["image"], axis)}
        if Need.SOURCE_BATCHES in method.needs:
            source_images = task.preprocess.train(source_keys[0], batch["source"]["image"], axis)
            batch["source"] = {**batch["source"], "image": source_images}
        run = _in_parts(gradients, task.accumulate) if task.accumulate > 1 else gradients
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


def _in_parts(gradients: Gradients, number: int) -> Gradients:
    """`gradients` of `number` parts of a batch, one after the other, and their means."""

    def accumulated(state: TrainState, frozen: Frozen, batch: Batch, keys: Array) -> tuple[PyTree, PyTree, Metrics]:
        def add(carry: tuple[PyTree, PyTree], part: tuple[Batch, Array]) -> tuple[tuple[PyTree, PyTree], Metrics]:
            summed, batch_stats = carry
            grads, batch_stats, metrics = gradients(state.replace(batch_stats=batch_stats), frozen, *part)
            return (jax.tree.map(jnp.add, summed, grads), batch_stats), metrics

        # Every part has images of every device, so that cutting moves none of them.
        parts = jax.tree.map(lambda x: x.reshape(-1, number, *x.shape[1:]).swapaxes(0, 1), dict(batch))
        part_keys = jax.vmap(lambda key: jax.random.split(key, number), out_axes=1)(keys)
        start = jax.tree.map(jnp.zeros_like, state.params), state.batch_stats
        (summed, batch_stats), metrics = jax.lax.scan(add, start, (parts, part_keys))
        mean = partial(jax.tree.map, lambda x: x.mean(0))
        return jax.tree.map(lambda x: x / number, summed), batch_stats, mean(metrics)

    return accumulated
