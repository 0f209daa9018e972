"""How programs are compiled: what was measured to make them faster, in one place (docs/speed.md)."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax

# XLA gives convolutions and matrix products on a CPU to YNNPACK, which is slower at them than Eigen and good at sums.
_ON_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` for a whole program: a step, an evaluation. It cannot be called while another one is traced."""
    return jax.jit(function, compiler_options=compiler_options(), **options)


@cache
def compiler_options() -> dict[str, Any] | None:
    """XLA's options for the device that runs."""
    if not on_cpu():
        return None
    try:
        jax.jit(lambda x: x, compiler_options=_ON_CPU).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # XLA's options come and go with its versions; the programs are the same without
        return None
    return _ON_CPU


def on_cpu() -> bool:
    """Whether what is traced now will run on a CPU.

    Decided while tracing: `lax.platform_dependent` would decide later, for which it traces both forms of every layer.
    """
    return jax.default_backend() == "cpu"
