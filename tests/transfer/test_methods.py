"""Every method's penalty against NumPy, written from its equation; what it needs, how it sums over taps and batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from afa_jax.transfer.method import EMBEDDING, Anatomy, Context, Frozen, Need, Start
from afa_jax.transfer.methods import METHODS
from afa_jax.types import Outputs

SHAPES = {"a": (4, 3, 3, 5), "b": (4, 2, 2, 6)}
CONVENTIONS = ("released", "paper", "normalised")


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def random_array(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def features(seed):
    return {tap: random_array(*shape, seed=seed + i) for i, (tap, shape) in enumerate(SHAPES.items())}


TARGET, TEACHER = features(0), features(10)
CONSTANTS = {
    "energy": {"a": jnp.float32(3), "b": jnp.float32(5)},
    "channels": {tap: jax.nn.softmax(random_array(shape[-1], seed=20)) for tap, shape in SHAPES.items()},
    "positions": {tap: jax.nn.softmax(random_array(shape[1] * shape[2], seed=21)) for tap, shape in SHAPES.items()},
    "logits": random_array(9, 7, seed=22),
    "relationship": jax.nn.softmax(random_array(3, 7, seed=23)),
}
SOURCE_HEAD = {"kernel": random_array(8, 7, seed=24), "bias": random_array(7, seed=25)}
LAYERS = {"a": (1, 1, 4, 5), "b": (3, 3, 5, 6), "c": (1, 1, 6, 3)}


def weights(seed):
    """Convolutions of which `a` and `b` are tapped, a BatchNorm, and the head."""
    layers = {name: {"kernel": random_array(*shape, seed=seed + i)} for i, (name, shape) in enumerate(LAYERS.items())}
    norm = {"scale": random_array(5, seed=seed + 7), "bias": random_array(5, seed=seed + 8)}
    return {**layers, "bn": norm, "fc": {"kernel": random_array(8, 3, seed=seed + 9), "bias": jnp.ones(3)}}


def context(name, *, target=TARGET, teacher=TEACHER, attention=None, convention="released", progress=0.25, **changes):
    method = METHODS[name]
    start = Start(teacher, SOURCE_HEAD)
    embedded = {**target, EMBEDDING: changes.pop("embedding", random_array(4, 8, seed=30))}
    made = Context(
        {"target": weights(40), "attention": method.init(jax.random.key(0), start) if attention is None else attention},
        Outputs(jnp.zeros((4, 3)), embedded, {}),
        Outputs(jnp.zeros((4, 7)), teacher, {}),
        Frozen({"params": weights(60)}, CONSTANTS if convention == "normalised" else CONSTANTS | {"energy": {}}),
        {
            "label": jnp.array([2, 0, 1, 2]),
            "index": jnp.array([8, 0, 3, 3]),
            "source": {"label": jnp.array([6, 0, 1, 1])},
        },
        jnp.float32(progress),
        {**method.settings, "convention": convention},
        Anatomy("fc", ("fc",), "fc"),
        Outputs(jnp.zeros((4, 3)), {EMBEDDING: random_array(4, 8, seed=31)}, {}),
    )
    return made._replace(**changes)


def penalty(name, **changes):
    return METHODS[name].penalty(context(name, **changes))


def wide(array):
    return np.asarray(array, np.float64)


def maps(tap):
    """(D, number of positions, channels), D `[B, HW, C]`."""
    difference = wide(TARGET[tap]) - wide(TEACHER[tap])
    b, h, w, c = difference.shape
    return difference.reshape(b, h * w, c), h * w, c


def scaled(convention, tap, paper, released):
    return {"paper": paper, "released": released, "normalised": released / float(CONSTANTS["energy"][tap])}[convention]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_fixed_weights_equal_numpy(convention):
    """DFA, DELTA and the two fixed attentions, tap by tap."""
    found = {name: penalty(name, convention=convention) for name in ("dfa", "delta", "ast_fixed", "act_fixed")}
    for tap in SHAPES:
        d, places, channels = maps(tap)
        w, a = wide(CONSTANTS["channels"][tap]), wide(CONSTANTS["positions"][tap])
        rectified = np.maximum(wide(TARGET[tap]), 0) - np.maximum(wide(TEACHER[tap]), 0)
        by_channel, by_place = (d**2).sum(1), (d**2).sum(2)
        area = places if convention == "released" else 1
        expected = {
            "dfa": scaled(convention, tap, (d**2).sum((1, 2)), 0.5 * (d**2).sum((1, 2))),
            "delta": scaled(convention, tap, (rectified**2).sum((1, 2)) @ w, 0.5 * channels / area * (by_channel @ w)),
            "ast_fixed": scaled(convention, tap, by_place @ a**2, 0.5 * places**2 * (by_place @ a**2)),
            "act_fixed": scaled(convention, tap, by_channel @ w, 0.5 * channels * (by_channel @ w)),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][tap], value, rtol=1e-4)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_learnt_attention_equals_numpy(convention):
    """AST and ACT with their modules' arithmetic, and the one-stage AFA as their sum."""
    both = METHODS["afa_one_stage"].init(jax.random.key(1), Start(TEACHER, {}))
    spatial = penalty("ast", attention=both["spatial"], convention=convention)
    channel = penalty("act", attention=both["channel"], convention=convention)
    together = penalty("afa_one_stage", attention=both, convention=convention)
    for tap in SHAPES:
        d, places, channels = maps(tap)
        flat = wide(TEACHER[tap]).reshape(4, places, channels)
        sam, cam = (jax.tree.map(wide, both[kind][tap]) for kind in ("spatial", "channel"))
        hidden = np.maximum(flat.mean(2) @ sam["Dense_0"]["kernel"], 0)
        a = softmax(hidden @ sam["Dense_1"]["kernel"] + sam["Dense_1"]["bias"])
        hidden = np.maximum(flat.transpose(0, 2, 1) @ cam["Dense_0"]["kernel"], 0)
        c = softmax((hidden @ cam["Dense_1"]["kernel"])[..., 0] + cam["bias"])
        by_place, by_channel = (a**2 * (d**2).sum(2)).sum(1), (c * (d**2).sum(1)).sum(1)
        expected = scaled(convention, tap, by_place, 0.5 * places**2 * by_place)
        np.testing.assert_allclose(spatial[tap], expected, rtol=1e-4)
        np.testing.assert_array_equal(together[f"spatial/{tap}"], spatial[tap])
        expected = scaled(convention, tap, by_channel, 0.5 * channels * by_channel)
        np.testing.assert_allclose(channel[tap], expected, rtol=1e-4)
        np.testing.assert_array_equal(together[f"channel/{tap}"], channel[tap])
    assert len(together) == 4


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_start_as_reference_equals_numpy(convention):
    """Every parameter but the head's; the attentive form weighs the filters of the taps."""
    half = 1.0 if convention == "paper" else 0.5
    now, start = weights(40), weights(60)
    squares = {
        (layer, kind): (wide(now[layer][kind]) - wide(start[layer][kind])) ** 2
        for layer in now
        if layer != "fc"
        for kind in now[layer]
    }
    found = penalty("l2_sp", convention=convention)
    np.testing.assert_allclose(found["backbone"], half * sum(s.sum() for s in squares.values()), rtol=1e-5)
    found = penalty("l2_sp_att", convention=convention)
    assert found.keys() == {"a", "b", "others"}
    for tap in SHAPES:
        own, w = squares.pop((tap, "kernel")), wide(CONSTANTS["channels"][tap])
        scale = 1 if convention == "paper" else len(w)
        np.testing.assert_allclose(found[tap], half * scale * (own.sum((0, 1, 2)) * w).sum(), rtol=1e-5)
    np.testing.assert_allclose(found["others"], half * sum(s.sum() for s in squares.values()), rtol=1e-5)


def test_a_tap_made_of_several_convolutions_gives_each_its_weights():
    """`joined` has the channels of `b`, then those of `c`, then two of a pool, which are no filter's."""
    w = jax.nn.softmax(random_array(11, seed=5))
    anatomy = Anatomy("fc", ("fc",), "fc", FrozenDict({"joined": ("b", "c")}))
    frozen = Frozen({"params": weights(60)}, {"channels": {"joined": w}})
    found = penalty("l2_sp_att", anatomy=anatomy, frozen=frozen)
    squares = [((wide(weights(40)[n]["kernel"]) - wide(weights(60)[n]["kernel"])) ** 2).sum((0, 1, 2)) for n in "bc"]
    expected = 0.5 * 11 * (np.concatenate(squares) * wide(w)[:9]).sum()
    np.testing.assert_allclose(found["joined"], expected, rtol=1e-5)


def test_uniform_weights_make_the_attentive_form_plain():
    even = {tap: jnp.full(shape[-1], 1 / shape[-1]) for tap, shape in SHAPES.items()}
    attentive = penalty("l2_sp_att", frozen=Frozen({"params": weights(60)}, {"channels": even}))
    np.testing.assert_allclose(sum(attentive.values()), penalty("l2_sp")["backbone"], rtol=1e-5)


def test_learning_without_forgetting_equals_numpy():
    for temperature in (2.0, 0.5):
        settings = {**METHODS["lwf"].settings, "temperature": temperature, "convention": "released"}
        p = softmax(wide(CONSTANTS["logits"])[[8, 0, 3, 3]] / temperature)
        embedding = wide(random_array(4, 8, seed=30))
        q = softmax((embedding @ wide(SOURCE_HEAD["kernel"]) + wide(SOURCE_HEAD["bias"])) / temperature)
        expected = (p * np.log(p / q)).sum(1)
        np.testing.assert_allclose(penalty("lwf", settings=settings)["outputs"], expected, rtol=1e-4)


def test_nothing_is_forgotten_where_the_outputs_are_as_recorded():
    inputs = random_array(9, 8, seed=3)
    frozen = Frozen(None, {"logits": inputs @ SOURCE_HEAD["kernel"] + SOURCE_HEAD["bias"]})
    found = penalty("lwf", embedding=inputs[jnp.array([8, 0, 3, 3])], frozen=frozen)["outputs"]
    np.testing.assert_allclose(found, 0, atol=1e-6)


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 1.0), (0.25, 0.85355339), (0.5, 0.5), (1.0, 0.0)])
def test_soft_fine_tuning_is_the_source_tasks_loss_that_fades(progress, weight):
    logits = wide(random_array(4, 8, seed=31)) @ wide(SOURCE_HEAD["kernel"]) + wide(SOURCE_HEAD["bias"])
    loss = -np.log(softmax(logits))[np.arange(4), [6, 0, 1, 1]].mean()
    found = penalty("soft_ft", progress=progress)["source_task"]
    np.testing.assert_allclose(found, weight * loss, rtol=1e-5, atol=1e-6)


def test_co_tuning_equals_numpy():
    logits = wide(random_array(4, 8, seed=30)) @ wide(SOURCE_HEAD["kernel"]) + wide(SOURCE_HEAD["bias"])
    p = wide(CONSTANTS["relationship"])[[2, 0, 1, 2]]
    expected = -(p * np.log(softmax(logits))).sum(1)
    np.testing.assert_allclose(penalty("co_tuning")["source_classes"], expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 8), (8, 4)])
@pytest.mark.parametrize("smallest", [1, 3])
def test_spectral_shrinkage_equals_numpys_singular_values(shape, smallest):
    embedding = random_array(*shape, seed=6)
    settings = {**METHODS["bss"].settings, "smallest": smallest}
    found = penalty("bss", embedding=embedding, settings=settings)["spectrum"]
    expected = (np.linalg.svd(wide(embedding), compute_uv=False)[-smallest:] ** 2).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_spectral_shrinkage_has_a_gradient_where_singular_values_are_equal():
    """Two images alike, or an embedding of zeros, as behind a ReLU that is shut."""
    for embedding in (jnp.eye(4), jnp.zeros((4, 8)), jnp.ones((4, 8))):
        gradient = jax.grad(lambda e: penalty("bss", embedding=e)["spectrum"])(embedding)
        assert jnp.isfinite(gradient).all()


def test_names_settings_and_documentation():
    assert set(METHODS) == {
        *("l2", "l2_fe", "l2_sp", "l2_sp_att", "lwf", "soft_ft", "dfa", "delta", "ast", "act", "bss", "co_tuning"),
        *("afa_one_stage", "ast_fixed", "act_fixed"),
    }
    for name, method in METHODS.items():
        assert method.name == name
        assert {"alpha", "beta", "weight_decay"} <= method.settings.keys()
        assert set(method.least) <= set(method.settings)
        assert method.first is None or METHODS[method.first].first is None
        assert method.penalty.__doc__ and ("Ω" in method.penalty.__doc__)


@pytest.mark.parametrize("name", ["l2", "l2_fe"])
def test_nothing_is_added_but_weight_decay(name):
    method = METHODS[name]
    assert penalty(name) == {}
    assert (method.settings["alpha"], method.settings["beta"], method.settings["weight_decay"]) == (0, 0, 1e-4)
    assert not method.needs and method.head_only == (name == "l2_fe")


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if Need.TEACHER_FEATURES in m.needs])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_alignment_is_one_term_a_tap_and_an_example_and_zero_where_nothing_differs(name, convention):
    terms = penalty(name, convention=convention)
    assert {key.split("/")[-1] for key in terms} == {"a", "b"}
    assert all(term.shape == (4,) and (term > 0).all() for term in terms.values())
    same = penalty(name, target=TEACHER, convention=convention)
    assert all((term == 0).all() for term in same.values())


def test_only_the_released_dfa_and_delta_sum_over_the_batch():
    summed = {name: method.batch_sum for name, method in METHODS.items() if method.batch_sum}
    assert summed == {"dfa": {"released"}, "delta": {"released"}}


@pytest.mark.parametrize("name", ["ast", "act", "afa_one_stage"])
def test_attention_is_read_from_the_teacher(name):
    """Moving the target moves D, never the attention: Ω stays a quadratic in D."""
    terms = penalty(name)
    twice = {tap: TEACHER[tap] + 2 * (TARGET[tap] - TEACHER[tap]) for tap in TARGET}
    for key, term in penalty(name, target=twice).items():
        np.testing.assert_allclose(term, 4 * terms[key], rtol=1e-4)


@pytest.mark.parametrize("name", ["ast", "act"])
def test_attention_starts_differently_at_each_tap_and_for_each_key(name):
    start = Start({tap: jnp.ones((1, 3, 3, 4)) for tap in ("a", "b")}, {})
    first, again, other = (METHODS[name].init(jax.random.key(k), start) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [tree[tap]["Dense_0"]["kernel"] for tree, tap in ((first, "a"), (first, "b"), (other, "a"))]
    assert not any((kernels[i] == kernels[j]).all() for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("name", ["lwf", "soft_ft", "co_tuning"])
def test_the_source_head_is_kept_as_it_is(name):
    head = METHODS[name].init(jax.random.key(0), Start({}, SOURCE_HEAD))["source_head"]
    jax.tree.map(np.testing.assert_array_equal, head, SOURCE_HEAD)
    assert Need.SOURCE_HEAD in METHODS[name].needs
