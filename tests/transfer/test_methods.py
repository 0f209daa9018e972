"""Every method by its record: what it needs, where its gradients go, how it sums over taps and batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afa_jax.transfer.losses import direct_alignment
from afa_jax.transfer.methods import METHODS, Context, Frozen, Need
from afa_jax.types import Outputs


@pytest.fixture
def features():
    random = np.random.default_rng(0)
    shapes = {"a": (2, 3, 3, 4), "b": (2, 2, 2, 5)}
    return [{tap: jnp.asarray(random.normal(size=s), jnp.float32) for tap, s in shapes.items()} for _ in range(2)]


def context(method, target, teacher, attention, convention="released"):
    logits = jnp.zeros((2, 3))
    return Context(
        {"target": {}, "attention": attention},
        Outputs(logits, target, {}),
        Outputs(logits, teacher, {}),
        Frozen(),
        {},
        jnp.float32(0),
        {**METHODS[method].settings, "convention": convention},
        "fc",
    )


def test_names_and_settings():
    for name, method in METHODS.items():
        assert method.name == name
        assert {"alpha", "beta", "weight_decay"} <= method.settings.keys()


def test_l2_adds_nothing_but_weight_decay(features):
    method = METHODS["l2"]
    assert method.penalty(context("l2", *features, {})) == {}
    assert (method.settings["alpha"], method.settings["beta"], method.settings["weight_decay"]) == (0, 0, 1e-4)
    assert not method.needs


@pytest.mark.parametrize("name", ["dfa", "ast", "act"])
def test_one_term_a_tap_and_an_example(name, features):
    method = METHODS[name]
    attention = method.init(jax.random.key(0), features[1])
    terms = method.penalty(context(name, *features, attention))
    assert terms.keys() == {"a", "b"}
    assert all(term.shape == (2,) for term in terms.values())
    assert method.needs == {Need.TEACHER_FEATURES}
    same = method.penalty(context(name, features[1], features[1], attention))
    assert all((term == 0).all() for term in same.values())


def test_dfa_is_direct_alignment(features):
    for convention in ("released", "paper"):
        terms = METHODS["dfa"].penalty(context("dfa", *features, {}, convention))
        for tap, term in terms.items():
            expected = direct_alignment(features[0][tap], features[1][tap], convention)
            np.testing.assert_array_equal(term, expected)


@pytest.mark.parametrize("name", ["ast", "act"])
def test_attention_is_read_from_the_teacher(name, features):
    """Moving the target moves D, never the attention: Ω stays a quadratic in D."""
    method = METHODS[name]
    target, teacher = features
    attention = method.init(jax.random.key(0), teacher)
    terms = method.penalty(context(name, target, teacher, attention))
    twice = {tap: teacher[tap] + 2 * (target[tap] - teacher[tap]) for tap in target}
    for tap, term in method.penalty(context(name, twice, teacher, attention)).items():
        np.testing.assert_allclose(term, 4 * terms[tap], rtol=1e-4)


@pytest.mark.parametrize("name", ["ast", "act"])
def test_attention_starts_differently_at_each_tap_and_for_each_key(name):
    features = {tap: jnp.ones((1, 3, 3, 4)) for tap in ("a", "b")}
    first, again, other = (METHODS[name].init(jax.random.key(k), features) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [tree[tap]["Dense_0"]["kernel"] for tree, tap in ((first, "a"), (first, "b"), (other, "a"))]
    assert not any((kernels[i] == kernels[j]).all() for i, j in ((0, 1), (0, 2), (1, 2)))
