"""Methods that keep the source task's classification layer: LwF, soft fine-tuning, Co-Tuning."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from afa_jax.transfer.category_relationship import category_relationship
from afa_jax.transfer.method import EMBEDDING, SOURCE_HEAD, Context, Method, Need, Start, Survey
from afa_jax.types import Outputs, PyTree


def keep_head(key: Array, start: Start) -> PyTree:
    """The source network's classification layer, which goes on learning as the target's head does, without dropout."""
    return {SOURCE_HEAD: jax.tree.map(jnp.asarray, dict(start.source_head))}


def _source_logits(context: Context, outputs: Outputs) -> Array:
    """What the kept head says of the target's embedding: float32 `[B, K]`."""
    return context.classify(outputs.features[EMBEDDING], context.params["attention"][SOURCE_HEAD])


def learning_without_forgetting(context: Context) -> dict[str, Array]:
    """LwF: Ω = Σ_k p_k·log(p_k/q_k), with p = softmax(recorded/T) and q = softmax(now/T) (Li and Hoiem 2016, eq. 2, 3).

    `recorded` is what the source network said of this image before training, on its centre crop; `now` is what the kept
    head says. It is their cross-entropy less the entropy of p, which no parameter changes: zero where nothing is
    forgotten. There is no factor T².
    """
    temperature = context.settings["temperature"]
    recorded = jax.nn.log_softmax(context.frozen.constants["logits"][context.batch["index"]] / temperature)
    now = jax.nn.log_softmax(_source_logits(context, context.target) / temperature)
    return {"outputs": (jnp.exp(recorded) * (recorded - now)).sum(-1)}


def record_outputs(survey: Survey) -> dict[str, PyTree]:
    """The source network's logits of every training image, `[N, K]`."""
    return {"logits": jnp.concatenate([outputs.logits for outputs in survey.teacher()])}


def soft_fine_tuning(context: Context) -> dict[str, Array]:
    """Soft fine-tuning: Ω = λ(t)·cross-entropy of a batch of the source task (Zhao et al. 2019, arXiv 1909.02236).

    The source loss is held and removed softly. Their schedule is not public; ours is a half cosine,
    λ(t) = ½·(1 + cos πt) with t the share of the stage that is done: slow at first, and zero at the end. The source
    batch goes through the target network in train mode; its BatchNorm statistics are used and not kept.
    """
    assert context.source is not None
    logits = _source_logits(context, context.source)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, context.batch["source"]["label"])
    return {"source_task": 0.5 * (1 + jnp.cos(jnp.pi * context.progress)) * losses.mean()}


def co_tuning(context: Context) -> dict[str, Array]:
    """Co-Tuning: Ω = −Σ_k p(k|y)·log q_k (You et al. 2020, eq. 4), q what the kept head says of the image.

    p(k|y), how probable source class k is for target class y, is learnt before training: `category_relationship`.
    """
    relationship = context.frozen.constants["relationship"][context.batch["label"]]
    return {"source_classes": optax.softmax_cross_entropy(_source_logits(context, context.target), relationship)}


def relate_categories(survey: Survey) -> dict[str, PyTree]:
    """p(source class | target class), `[target classes, source classes]`, from the source network's probabilities."""
    temperature = survey.settings["temperature"]
    survey.tell(f"Learning how the source's classes relate to the target's, from {len(survey.labels):,} images.")
    probabilities = jnp.concatenate([jax.nn.softmax(outputs.logits / temperature) for outputs in survey.teacher()])
    return {"relationship": category_relationship(probabilities, survey.labels)}


_KEPT = frozenset({Need.EMBEDDING, Need.SOURCE_HEAD})
_TEMPERATURE = {"temperature": 1e-3}
METHODS = {
    method.name: method
    for method in (
        Method(
            "lwf",
            learning_without_forgetting,
            keep_head,
            prepare=record_outputs,
            needs=_KEPT,
            settings={"alpha": 1.0, "beta": 0.0, "weight_decay": 1e-4, "temperature": 2.0},
            least=_TEMPERATURE,
        ),
        Method(
            "soft_ft",
            soft_fine_tuning,
            keep_head,
            needs=_KEPT | {Need.SOURCE_BATCHES},
            settings={"alpha": 1.0, "beta": 0.0, "weight_decay": 1e-4},
        ),
        Method(
            "co_tuning",
            co_tuning,
            keep_head,
            prepare=relate_categories,
            needs=_KEPT,
            settings={"alpha": 2.3, "beta": 0.0, "weight_decay": 5e-4, "temperature": 1.0},
            least=_TEMPERATURE,
        ),
    )
}
