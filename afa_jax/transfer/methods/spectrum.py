"""Batch spectral shrinkage: against features that do not help, rather than against forgetting."""

import jax.numpy as jnp
from jax import Array

from afa_jax.transfer.method import EMBEDDING, Context, Method, Need


def shrink_spectrum(context: Context) -> dict[str, Array]:
    """BSS: Ω = Σ_{i ≤ k} σ₋ᵢ², the k smallest singular values of the batch's embeddings F, `[B, D]` (Chen et al. 2019).

    Their squares are the smallest eigenvalues of the smaller of FFᵀ and FᵀF.
    """
    features = context.axis.whole(context.target.features[EMBEDDING].astype(jnp.float32))
    gram = features @ features.T if features.shape[0] <= features.shape[1] else features.T @ features
    return {"spectrum": jnp.linalg.eigvalsh(gram)[: context.settings["smallest"]].sum()}


METHODS = {
    "bss": Method(
        "bss",
        shrink_spectrum,
        needs=frozenset({Need.EMBEDDING}),
        settings={"alpha": 1e-3, "beta": 0.0, "weight_decay": 1e-4, "smallest": 1},
        least={"smallest": 1},
    )
}
