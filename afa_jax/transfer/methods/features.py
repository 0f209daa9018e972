"""Methods that hold the target's feature maps to the teacher's: DFA, DELTA, AST, ACT and the ablations of AFA."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax import Array

from afa_jax.transfer.attention import ChannelAttention, SpatialAttention
from afa_jax.transfer.channel_weights import channel_weights
from afa_jax.transfer.losses import (
    channel_alignment,
    delta_alignment,
    direct_alignment,
    feature_energy,
    spatial_alignment,
)
from afa_jax.transfer.method import Context, Method, Need, Start, Survey
from afa_jax.types import PyTree

_FEATURES = frozenset({Need.TEACHER_FEATURES})
_SUMMED = frozenset({"released"})
_SAM: Any = SpatialAttention()  # Any, because Flax says that `apply` may give a pair
_CAM: Any = ChannelAttention()


def _each_tap(context: Context, loss: Callable[[str, Array, Array, dict[str, Any]], Array]) -> dict[str, Array]:
    """`loss` of (tap, the target's feature, the teacher's, the scale's keyword arguments) at each tap."""
    assert context.teacher is not None
    energy: Mapping[str, Array] = context.frozen.constants.get("energy", {})
    scales = {tap: {"convention": context.settings["convention"], "energy": energy.get(tap)} for tap in energy or ()}
    plain = {"convention": context.settings["convention"]}
    return {
        tap: loss(tap, context.target.features[tap], feature, scales.get(tap, plain))
        for tap, feature in context.teacher.features.items()
    }


def measure_energy(survey: Survey) -> dict[str, PyTree]:
    """E‖F‖² of the teacher at each tap, over all training images, for the convention `normalised`."""
    if survey.settings["convention"] != "normalised":
        return {}
    totals: dict[str, Any] = dict.fromkeys(survey.taps, 0.0)
    count = 0
    for outputs in survey.teacher():
        totals = {tap: total + feature_energy(outputs.features[tap]).sum() for tap, total in totals.items()}
        count += len(outputs.logits)
    return {"energy": {tap: total / count for tap, total in totals.items()}}


def direct(context: Context) -> dict[str, Array]:
    """Direct feature alignment, DFA: Ω = Σ_taps ‖D‖² (AFA eq. 3; DELTA eq. 5, there called knowledge distillation)."""
    return _each_tap(context, lambda tap, target, teacher, scale: direct_alignment(target, teacher, **scale))


def delta(context: Context) -> dict[str, Array]:
    """DELTA: Ω = Σ_taps Σ_c w_c·‖D_c‖², one fixed weight w_c a channel for all images (DELTA eq. 8, 9)."""
    weights = context.frozen.constants["channels"]
    return _each_tap(context, lambda tap, a, b, scale: delta_alignment(a, b, weights[tap], **scale))


def weigh_channels(survey: Survey) -> dict[str, PyTree]:
    """DELTA's weights from what the stage before trained: the source's features with a head for the target task."""
    increases = survey.loss_increases()
    return {"increases": dict(increases), "channels": channel_weights(increases, survey.settings["convention"])}


def spatial(context: Context) -> dict[str, Array]:
    """Attentive spatial transfer, AST: Ω = Σ_taps Ω_S under one learnt SAM a tap (AFA eq. 5, 6)."""
    modules = context.params["attention"]

    def loss(tap: str, target: Array, teacher: Array, scale: dict[str, Any]) -> Array:
        return spatial_alignment(target, teacher, _SAM.apply({"params": modules[tap]}, teacher), **scale)

    return _each_tap(context, loss)


def channel(context: Context) -> dict[str, Array]:
    """Attentive channel transfer, ACT: Ω = Σ_taps Ω_C under one learnt CAM a tap (AFA eq. 7, 8)."""
    modules = context.params["attention"]

    def loss(tap: str, target: Array, teacher: Array, scale: dict[str, Any]) -> Array:
        return channel_alignment(target, teacher, _CAM.apply({"params": modules[tap]}, teacher), **scale)

    return _each_tap(context, loss)


def one_stage(context: Context) -> dict[str, Array]:
    """AFA in one stage: Ω = Ω_S + Ω_C under one alpha, both attentions learnt at once (AFA §5.5.4, Table 7)."""
    terms = {}
    for kind, penalty in (("spatial", spatial), ("channel", channel)):
        own = {**context.params, "attention": context.params["attention"][kind]}
        terms |= {f"{kind}/{tap}": term for tap, term in penalty(context._replace(params=own)).items()}
    return terms


def fixed_spatial(context: Context) -> dict[str, Array]:
    """AST under fixed attention: Ω = Σ_taps Ω_S with the mean of trained SAMs for all images (AFA §5.5.6, Table 9)."""
    attention = context.frozen.constants["positions"]
    return _each_tap(context, lambda tap, a, b, scale: spatial_alignment(a, b, attention[tap][None], **scale))


def mean_attention(survey: Survey) -> dict[str, PyTree]:
    """What the SAMs that the stage before trained give, averaged over all training images: `[H·W]` a tap."""
    totals: dict[str, Any] = dict.fromkeys(survey.taps, 0.0)
    count = 0
    for outputs in survey.teacher():
        for tap, feature in outputs.features.items():
            totals[tap] += _SAM.apply({"params": survey.attention[tap]}, feature).sum(0)
        count += len(outputs.logits)
    return {"positions": {tap: total / count for tap, total in totals.items()}}


def fixed_channel(context: Context) -> dict[str, Array]:
    """ACT under fixed attention: Ω = Σ_taps Ω_C with DELTA's channel weights for all images (AFA §5.5.6, Table 9)."""
    weights = context.frozen.constants["channels"]
    return _each_tap(context, lambda tap, a, b, scale: channel_alignment(a, b, weights[tap][None], **scale))


def _modules(module: nn.Module) -> Callable[[Array, Start], PyTree]:
    """One attentive module a tap, sized by the teacher's features."""

    def init(key: Array, start: Start) -> PyTree:
        keys = dict(zip(start.features, jax.random.split(key, len(start.features)), strict=True))
        return {tap: module.init(keys[tap], feature)["params"] for tap, feature in start.features.items()}

    return init


def _both(key: Array, start: Start) -> PyTree:
    first, second = jax.random.split(key)
    return {"spatial": _modules(_SAM)(first, start), "channel": _modules(_CAM)(second, start)}


def _then(*parts: Callable[[Survey], dict[str, PyTree]]) -> Callable[[Survey], dict[str, PyTree]]:
    return lambda survey: {key: value for part in parts for key, value in part(survey).items()}


def _settings(alpha: float, **more: Any) -> dict[str, Any]:
    return {"alpha": alpha, "beta": 0.01, "weight_decay": 0.0, **more}


# On how many batches of how many images DELTA's weights are measured (0 batches: all training images, once), or a file
# that has them: the authors' JSON, or the constants of another run.
_MEASUREMENT = {"batches": 4, "images": 32, "channel_weights": ""}
_LEAST = {"images": 1}

METHODS = {
    method.name: method
    for method in (
        Method("dfa", direct, prepare=measure_energy, needs=_FEATURES, batch_sum=_SUMMED, settings=_settings(0.01)),
        Method(
            "delta",
            delta,
            prepare=_then(measure_energy, weigh_channels),
            first="l2_fe",
            needs=_FEATURES,
            batch_sum=_SUMMED,
            settings=_settings(0.01, **_MEASUREMENT),
            least=_LEAST,
        ),
        Method("ast", spatial, _modules(_SAM), prepare=measure_energy, needs=_FEATURES, settings=_settings(0.1)),
        Method("act", channel, _modules(_CAM), prepare=measure_energy, needs=_FEATURES, settings=_settings(0.15)),
        Method("afa_one_stage", one_stage, _both, prepare=measure_energy, needs=_FEATURES, settings=_settings(0.1)),
        Method(
            "ast_fixed",
            fixed_spatial,
            prepare=_then(measure_energy, mean_attention),
            first="ast",
            needs=_FEATURES,
            settings=_settings(0.1),
        ),
        Method(
            "act_fixed",
            fixed_channel,
            prepare=_then(measure_energy, weigh_channels),
            first="l2_fe",
            needs=_FEATURES,
            settings=_settings(0.15, **_MEASUREMENT),
            least=_LEAST,
        ),
    )
}
