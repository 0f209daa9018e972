"""XLA's options: on a CPU those that help, and none where XLA does not know them."""

import jax
import jax.numpy as jnp
import pytest

from afa_jax import compilation


@pytest.fixture(autouse=True)
def forgotten():
    compilation.compiler_options.cache_clear()
    yield
    compilation.compiler_options.cache_clear()


def test_convolutions_stay_with_eigen_on_a_cpu():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    arrays = jnp.ones((8, 28, 28, 32)), jnp.ones((3, 3, 32, 32))
    assert "ynn" not in compilation.jit(convolve).lower(*arrays).compile().as_text()
    assert " convolution(" in compilation.jit(convolve).lower(*arrays).compile().as_text()


def test_an_xla_without_the_option_compiles_without_it(monkeypatch):
    monkeypatch.setattr(compilation, "_ON_CPU", {"xla_cpu_option_of_another_version": "1"})
    assert compilation.compiler_options() is None
    assert compilation.jit(lambda x: x + 1)(1.0) == 2


def test_another_device_has_no_options(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compilation.compiler_options() is None
