"""How many parameters networks and attentive modules have (AFA Table 6); nothing is trained or computed."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from afa_jax import trees
from afa_jax.models import zoo
from afa_jax.report.published import PARAMETERS
from afa_jax.transfer.attention import ChannelAttention, SpatialAttention

CLASSES = 1000
"""Of ImageNet, as the table counts the network."""


def parameter_counts(network: str, taps: int = 4) -> tuple[int, int, int]:
    """Those of the network, of its SAMs and of its CAMs, one at each tap."""
    key, module, size = jax.random.key(0), zoo.create(network, CLASSES), zoo.NETWORKS[network].image_size
    images, shapes = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32), zoo.layer_shapes(module, size)
    features = [jax.ShapeDtypeStruct(shapes[tap], jnp.float32) for tap in zoo.NETWORKS[network].taps[taps]]
    own = jax.eval_shape(module.init, key, images)["params"]
    sams, cams = (
        [jax.eval_shape(attention.init, key, feature) for feature in features]
        for attention in (SpatialAttention(), ChannelAttention())
    )
    return trees.size(own), trees.size(sams), trees.size(cams)


def lines(networks: Iterable[str]) -> list[tuple[str, ...]]:
    """The table, the published figures beside."""
    rows: list[tuple[str, ...]] = [("network", "parameters", "4 SAMs", "4 CAMs", "published")]
    for name in networks:
        counts = (f"{count:,}" for count in parameter_counts(name))
        rows.append((name, *counts, ", ".join(PARAMETERS.get(name, ()))))
    return rows
