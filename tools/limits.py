"""What the device can do at best, measured, and how near to it a step is."""

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from afa_jax.compilation import on_cpu


def peaks(repeats: int = 5) -> dict[str, float]:
    """The device's best: operations a second in a matrix product, by type; `bytes` a second in a copy."""
    size, megabytes = (2048, 256) if on_cpu() else (8192, 4096)
    rates = {name: _product(size, name, repeats) for name in ("float32", *(() if on_cpu() else ("bfloat16",)))}
    return {**rates, "bytes": _copy(megabytes << 18, repeats)}


def _product(size: int, dtype: str, repeats: int) -> float:
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(matrix))
    fastest = math.inf
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(product(matrix))
        fastest = min(fastest, time.perf_counter() - begun)
    return 2 * size**3 / fastest


def _copy(count: int, repeats: int) -> float:
    array = jnp.ones(count)
    # In place, because a step too reuses its memory: asking the system for it anew would be measured as well.
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    fastest = math.inf
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        array = jax.block_until_ready(copy(array))
        fastest = min(fastest, time.perf_counter() - begun)
    return 2 * array.nbytes / fastest


def products(jaxpr: Any) -> float:
    """Operations of the convolutions and matrix products that what is given depends on; a sum and a product are two.

    Counted by hand, because XLA counts none that it leaves to a GPU's libraries.
    """
    used, total = {x for x in jaxpr.outvars if not isinstance(x, Literal)}, 0.0
    for equation in reversed(jaxpr.eqns):
        if used.isdisjoint(equation.outvars):
            continue
        used.update(x for x in equation.invars if not isinstance(x, Literal))
        parameters, y = equation.params, equation.outvars[0].aval
        shapes = [x.aval.shape for x in equation.invars]
        if equation.primitive.name == "dot_general":
            (over, _), _ = parameters["dimension_numbers"]
            total += 2 * y.size * math.prod(shapes[0][axis] for axis in over)
        elif equation.primitive.name == "conv_general_dilated":
            _, of_inputs, *sides = parameters["dimension_numbers"].rhs_spec
            area = math.prod(shapes[1][axis] for axis in sides) / math.prod(parameters["lhs_dilation"])
            total += 2 * y.size * area * shapes[1][of_inputs]
        else:
            total += parameters.get("length", 1) * sum(map(products, _inner(parameters)))
    return total


def _inner(parameters: Mapping[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(each, "jaxpr", each)
            if hasattr(inner, "eqns"):
                yield inner


def share_of_limit(row: Mapping[str, Any], peak: Mapping[str, float]) -> float:
    """The least time that arithmetic or memory would take at the measured peaks, as a share of the step's.

    Args:
      row: of `step_speed.compare`.
    """
    least = max(row["flops"] / peak[row["dtype"]], row["bytes"] / peak["bytes"])
    return least * row["images_per_second"][row["best"]] / row["batch"]
