"""Methods that look at the target's weights alone: plain fine-tuning, feature extraction, L2-SP and L2-SP-ATT."""

from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax import Array

from afa_jax.transfer.method import Context, Method, Need
from afa_jax.transfer.methods.features import METHODS as FEATURE_METHODS
from afa_jax.transfer.methods.features import weigh_channels


def fine_tuning(context: Context) -> dict[str, Array]:
    """L2, plain fine-tuning: Ω = 0, with weight decay on every parameter of the target (AFA eq. 1; DELTA eq. 3)."""
    return {}


def feature_extraction(context: Context) -> dict[str, Array]:
    """L2-FE: Ω = 0, and only the head learns, with weight decay (DELTA §3.4).

    BatchNorm runs in eval mode, with the source's statistics. So an image has the same features at each step, which is
    what is meant by an extractor; with the batch's statistics they would move although no weight does, and the running
    ones would leave the source's. Dropout rests as well.
    """
    return {}


def _drift(context: Context) -> dict[str, Array]:
    """(w − w⁰)² of each parameter of the target but its heads', by path; w⁰ are the teacher's, where it began."""
    assert context.frozen.teacher is not None
    start: dict[str, Any] = flatten_dict(dict(context.frozen.teacher["params"]), sep=".")
    now: dict[str, Any] = flatten_dict(dict(context.params["target"]), sep=".")
    heads = tuple(f"{head}." for head in context.anatomy.heads)
    return {path: jnp.square(w - start[path]) for path, w in now.items() if not path.startswith(heads)}


def start_as_reference(context: Context) -> dict[str, Array]:
    """L2-SP: Ω = Σ‖w − w⁰‖² over every parameter but the heads', BatchNorm's included (AFA eq. 2; DELTA eq. 4).

    released and normalised: with ½. (Its own authors' code covers kernels only.)
    """
    return {"backbone": _half(context) * _total(_drift(context))}


def weighted_start_as_reference(context: Context) -> dict[str, Array]:
    """L2-SP-ATT: L2-SP in which the filters of the tapped layers weigh what DELTA weighs their channels (DELTA §4.2).

    Ω = Σ_taps Σ_c C·w_c·‖W_c − W⁰_c‖² + Σ_other ‖w − w⁰‖², W_c the kernel's part that makes channel c; paper: without
    C. released and normalised: with ½. Neither paper prints an equation; the factor C, as in DELTA's released loss,
    makes uniform weights plain L2-SP.
    """
    half, drift, terms = _half(context), _drift(context), {}
    for tap, weights in context.frozen.constants["channels"].items():
        scale = 1 if context.settings["convention"] == "paper" else weights.size
        first, terms[tap] = 0, jnp.float32(0)
        for layer in context.anatomy.filters_of(tap):
            squares = drift.pop(f"{layer}.kernel")  # [h, w, in, out]
            own = weights[first : first + squares.shape[-1]]
            terms[tap] += half * scale * (own * squares.sum((0, 1, 2))).sum()
            first += squares.shape[-1]
    return {**terms, "others": half * _total(drift)}


def _total(squares: dict[str, Array]) -> Array:
    return sum((each.sum() for each in squares.values()), jnp.float32(0))


def _half(context: Context) -> float:
    return 1.0 if context.settings["convention"] == "paper" else 0.5


_DECAY = {"alpha": 0.0, "beta": 0.0, "weight_decay": 1e-4}
_DELTA = FEATURE_METHODS["delta"]
METHODS = {
    method.name: method
    for method in (
        Method("l2", fine_tuning, settings=_DECAY),
        Method("l2_fe", feature_extraction, head_only=True, settings=_DECAY),
        Method(
            "l2_sp",
            start_as_reference,
            settings={"alpha": 0.01, "beta": 0.01, "weight_decay": 0.0},
        ),
        Method(
            "l2_sp_att",
            weighted_start_as_reference,
            prepare=weigh_channels,
            first="l2_fe",
            needs=frozenset({Need.TAPS}),
            settings=_DELTA.settings,
            least=_DELTA.least,
        ),
    )
}
