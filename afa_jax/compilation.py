"""How programs are compiled: what was measured to make them faster, in one place (docs/speed.md)."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax

# XLA gives convolutions and matrix products on a CPU to YNNPACK, which is slower at them than Eigen and good at sums.
_ON_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` for a whole program: a step, an evaluation. It cannot be called while another one is traced.

    `jax.pmap` takes no such options.
    """
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


def keep_programs(folder: Path) -> None:
    """Lets a process keep what it compiles in `folder`, and find what another one has compiled.

    A cache that the user has named (`JAX_COMPILATION_CACHE_DIR`) stays. Programs come back as they were: a run that is
    continued computes the same.
    """
    if not getattr(jax.config, "jax_compilation_cache_dir"):  # noqa: B009  (unknown to type checkers)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # A start compiles some hundred small programs, together as long as the large one.
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def on_cpu() -> bool:
    """Whether what is traced now will run on a CPU.

    Decided while tracing: `lax.platform_dependent` would decide later, for which it traces both forms of every layer.
    """
    return jax.default_backend() == "cpu"
