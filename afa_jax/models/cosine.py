"""Classification by angle alone: what an identity's column of the kernel has in common with an embedding."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


class CosineHead(nn.Module):
    """A network whose classification layer says s·cos θ_j of the embedding and its kernel's columns; the bias is idle.

    Its variables, the paths of its layers and what can be tapped are those of `network`.

    Attributes:
      network: a linen module called as `module(images, train=…)`.
      head: the path of its classification layer, a `Dense`.
      scale: s.
    """

    network: nn.Module
    head: str
    scale: float

    def setup(self) -> None:
        nn.share_scope(self, self.network)

    def __call__(self, images: Array, train: bool = False) -> Array:
        """float32 `[B, K]` of images `[B, H, W, 3]`."""

        def at_head(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            made = call(*args, **kwargs)
            if context.method_name == "__call__" and ".".join(context.module.path) == self.head:
                return cosine_logits(args[0], context.module.get_variable("params", "kernel"), self.scale)
            return made

        with nn.intercept_methods(at_head):
            return self.network(images, train=train)


def unit(vectors: Array, axis: int = -1) -> Array:
    """x / ‖x‖ in float32, for vectors of any length that float32 has.

    A zero vector stays zero, and its gradient is that of a vector of length 1, so that training can move it.
    """
    vectors = vectors.astype(jnp.float32)
    # The result does not depend on the scale, so its gradient does not either; squares of what is scaled stay finite.
    largest = jax.lax.stop_gradient(jnp.abs(vectors).max(axis, keepdims=True))
    scaled = vectors / jnp.where(largest > 0, largest, 1)
    square = (scaled * scaled).sum(axis, keepdims=True)
    return scaled / jnp.sqrt(jnp.where(largest > 0, square, 1))


def cosine_logits(embedding: Array, kernel: Array, scale: float = 64.0) -> Array:
    """s·cos θ_j: what identities are judged by when no margin is added.

    Args:
      embedding: `[B, D]`, what the classification layer takes in.
      kernel: `[D, K]`, a column an identity.
      scale: s.

    Returns:
      float32 `[B, K]`.
    """
    return scale * cosines(unit(embedding), unit(kernel, axis=0))


def cosines(embedding: Array, kernel: Array) -> Array:
    """cos θ `[B, K]` of vectors of length 1, `[B, D]` and `[D, K]`."""
    # Elsewhere than on CPU the default drops digits, of which the scale of 64 would make whole logits.
    return jnp.matmul(embedding, kernel, precision=jax.lax.Precision.HIGHEST)
