"""What is used more than once is computed once on a CPU, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afa_jax.models.once import gradient_once, once


@pytest.mark.parametrize("keep", [once, gradient_once])
def test_nothing_is_changed(keep):
    x = jnp.array([[0.0, -0.0, jnp.inf], [-jnp.inf, jnp.nan, 1e-40]])
    for f in (keep, jax.jit(keep), jax.vmap(keep)):
        np.testing.assert_array_equal(np.asarray(f(x)).view(np.int32), np.asarray(x).view(np.int32))
        np.testing.assert_array_equal(jax.grad(lambda x, f=f: (3 * f(x)).sum())(x), jnp.full_like(x, 3))


@pytest.mark.parametrize("keep", [once, gradient_once])
def test_there_is_a_condition_on_a_cpu_alone(keep, monkeypatch):
    def program():
        return str(jax.make_jaxpr(jax.grad(lambda x: keep(x).sum()))(1.0))

    assert program().count("cond[") == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "cond[" not in program()


def bytes_of(blocks, keep, differentiate):
    """What a program of so many blocks, each a product behind a shortcut, reads and writes."""

    def run(x, matrices):
        for matrix in matrices:
            y = (x.reshape(-1, 64) @ matrix).reshape(x.shape)
            x = keep(jax.nn.relu(gradient_once(2 * y + x)))
        return x

    arguments = jnp.ones((4, 16, 16, 64)), [jnp.ones((64, 64))] * blocks
    gradient = jax.grad(lambda *arguments: (run(*arguments) ** 2).sum(), (0, 1))
    program = jax.jit(gradient if differentiate else run).lower(*arguments).compile()
    return program.cost_analysis()["bytes accessed"]


@pytest.mark.parametrize("differentiate", [False, True])
def test_a_row_of_shortcuts_costs_by_its_length_and_not_by_its_square(differentiate):
    few, many = (bytes_of(blocks, once, differentiate) for blocks in (4, 16))
    assert many < 4.4 * few
    assert many < 0.9 * bytes_of(16, lambda x: x, differentiate)
