"""The training step: the loss it minimises, the move it makes, what it leaves alone."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from afa_jax import compilation
from afa_jax.models.cosine import CosineHead
from afa_jax.models.zoo import forward
from afa_jax.training import parallel
from afa_jax.training.identification import Loss
from afa_jax.training.parallel import Devices
from afa_jax.training.step import init_state, make_step
from afa_jax.transfer.attention import SpatialAttention
from afa_jax.transfer.method import Frozen, linear
from afa_jax.transfer.methods import METHODS
from tests import tiny

LEARN_THEMSELVES = ("ast", "act", "afa_one_stage", "lwf", "soft_ft", "co_tuning")
FIRST = {"ast_fixed": "ast"}  # whose own parameters are measured


@pytest.fixture(scope="module")
def frozen_for(tmp_path_factory):
    """What is frozen in a stage of a method, measured once."""

    def make(task):
        attention = {}
        if task.stage.name in FIRST:
            first = tiny.task(tiny.stage(FIRST[task.stage.name]))
            attention = start(first)[0].params["attention"]
        return tiny.frozen(task, tmp_path_factory.mktemp("constants"), attention=attention)

    return make


def start(task, seed=0, frozen=None):
    frozen = frozen or Frozen(teacher=tiny.variables(tiny.SOURCE_CLASSES, seed=7))
    images = jnp.asarray(tiny.batch()["image"])
    return init_state(task, tiny.variables(seed=seed), frozen, images, jax.random.PRNGKey(seed)), frozen


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_loss_is_cross_entropy_plus_alignment_plus_head_penalty():
    """Every term of AFA eq. 4 for an AST step, in NumPy from the features of the two networks."""
    task = tiny.task(tiny.stage("ast", alpha=0.3, beta=0.2))
    state, frozen = start(task)
    batch = tiny.batch()
    _, metrics = jax.jit(make_step(task))(state, frozen, batch)

    images = jnp.asarray(batch["image"] / np.float32(255), jnp.float32)
    variables = {"params": state.params["target"], "batch_stats": state.batch_stats}
    target = forward(task.target, variables, images, taps=task.stage.taps, train=True)
    teacher = forward(task.teacher, frozen.teacher, images, taps=task.stage.taps)
    logits = np.asarray(target.logits, np.float64)
    cross_entropy = -np.mean(np.log(softmax(logits))[np.arange(8), batch["label"]])
    alignment = 0
    for tap in task.stage.taps:
        attention = SpatialAttention().apply({"params": state.params["attention"][tap]}, teacher.features[tap])
        difference = np.asarray(target.features[tap], np.float64) - np.asarray(teacher.features[tap])
        places = difference.shape[1] * difference.shape[2]
        weighted = (np.asarray(attention) * places)[..., None] * difference.reshape(8, places, -1)
        part = 0.5 * (weighted**2).sum() / 8
        assert metrics[f"alignment/{tap}"] == pytest.approx(part, rel=1e-5)
        alignment += part
    head = sum(float((np.asarray(w, np.float64) ** 2).sum()) for w in state.params["target"]["fc"].values())
    assert metrics["cross_entropy"] == pytest.approx(cross_entropy, rel=1e-5)
    assert metrics["alignment"] == pytest.approx(alignment, rel=1e-5)
    assert metrics["head_penalty"] == pytest.approx(head / 2, rel=1e-5)
    assert metrics["loss"] == pytest.approx(cross_entropy + 0.3 * alignment + 0.2 * head / 2, rel=1e-5)
    assert metrics["top1"] == np.mean(logits.argmax(-1) == batch["label"])


def test_the_released_dfa_sums_over_the_batch_and_the_papers_takes_the_mean():
    terms = {}
    for convention in ("released", "paper"):
        task = tiny.task(tiny.stage("dfa", convention=convention))
        state, frozen = start(task)
        terms[convention] = jax.jit(make_step(task))(state, frozen, tiny.batch())[1]["alignment"].item()
    # released: ½·Σ_batch ‖D‖²; paper: mean ‖D‖²; eight images.
    assert terms["released"] == pytest.approx(0.5 * 8 * terms["paper"], rel=1e-5)


def sgd(param, grad, trace, rate, decay, momentum=0.9):
    trace = momentum * trace + grad + decay * param
    return param - rate * trace, trace


def test_the_move_is_pytorchs_sgd_with_its_groups():
    """Two steps with momentum, the second behind the drop; each group by its own rate, the attention without decay."""
    stage = tiny.stage("ast", learning_rate=0.1, drop_at=1, weight_decay=0.1)
    task = tiny.task(stage, momentum=0.9, head_rate=10.0, attention_rate=0.5)
    state, frozen = start(task)
    batch = tiny.batch()
    # A stage of learning rate 1 without momentum and decay moves by minus the gradient.
    bare = tiny.task(tiny.stage("ast", learning_rate=1.0, weight_decay=0.0), momentum=0.0)
    reveal, step = jax.jit(make_step(bare)), jax.jit(make_step(task))
    trace = jax.tree.map(jnp.zeros_like, state.params)
    for rate in (0.1, 0.01):
        probe = start(bare)[0].replace(params=state.params, batch_stats=state.batch_stats, step=state.step)
        probe = probe.replace(rng=state.rng)
        grads = jax.tree.map(jnp.subtract, state.params, reveal(probe, frozen, batch)[0].params)
        moved, metrics = step(state, frozen, batch)
        assert metrics["learning_rate"] == pytest.approx(rate)
        expected = {"target": {}, "attention": {}}
        for group, layers in state.params.items():
            for layer, params in layers.items():
                multiple = {"fc": 10.0}.get(layer, 1.0) if group == "target" else 0.5
                decay = 0.1 if group == "target" else 0.0
                pairs = jax.tree.map(
                    lambda p, g, t, m=multiple, d=decay, r=rate: sgd(p, g, t, m * r, d),
                    params,
                    grads[group][layer],
                    trace[group][layer],
                )
                is_pair = lambda x: isinstance(x, tuple)  # noqa: E731
                expected[group][layer] = jax.tree.map(lambda pair: pair[0], pairs, is_leaf=is_pair)
                trace[group][layer] = jax.tree.map(lambda pair: pair[1], pairs, is_leaf=is_pair)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moved.params, expected)
        state = moved


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_and_never_touches_what_is_frozen(name, frozen_for):
    rate = 0.5 if name == "l2_fe" else 0.05
    task = tiny.task(tiny.stage(name, alpha=1e-3, beta=0.0, weight_decay=0.0, learning_rate=rate))
    state, frozen = start(task, frozen=frozen_for(task))
    before = jax.tree.map(np.array, (frozen, state.params, state.batch_stats))
    step = Devices().compile(task)
    losses = []
    for _ in range(30):
        state, metrics = step(state, frozen, tiny.batch())
        losses.append(float(metrics["cross_entropy"]))
    assert losses[-1] < (0.98 if name == "l2_fe" else 0.8) * losses[0]
    assert int(state.step) == 30
    jax.tree.map(np.testing.assert_array_equal, frozen, before[0])
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), (state.params, state.batch_stats), before[1:])
    target = changed[0]["target"]
    assert all(jax.tree.leaves(changed[0]["attention"]))
    assert bool(changed[0]["attention"]) == (name in LEARN_THEMSELVES)
    assert all(jax.tree.leaves(target["fc"]))
    backbone = jax.tree.leaves(({key: value for key, value in target.items() if key != "fc"}, changed[1]))
    assert not any(backbone) if name == "l2_fe" else all(backbone)


@pytest.mark.parametrize(("name", "convention"), [*((name, "released") for name in METHODS), ("act", "normalised")])
def test_the_gradient_of_every_method_equals_finite_differences(name, convention, frozen_for):
    """The whole objective along random directions of everything that learns."""
    settings = {"alpha": 0.01 if METHODS[name].has_taps else 0.3, "weight_decay": 0.0, "convention": convention}
    task = tiny.task(tiny.stage(name, learning_rate=1.0, **settings), momentum=0.0)
    state, frozen = start(task, frozen=frozen_for(task))
    step = jax.jit(make_step(task))
    batch = tiny.batch()
    gradient = jax.tree.map(jnp.subtract, state.params, step(state, frozen, batch)[0].params)
    learns = {**state.params, "target": {"fc": state.params["target"]["fc"]}} if name == "l2_fe" else state.params
    gradient = jax.tree.map(lambda _, g: g, learns, _branches(gradient, learns))
    for seed in range(2):
        keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(learns)))
        leaves, structure = jax.tree.flatten(learns)
        direction = jax.tree.unflatten(
            structure, [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
        )
        length = optax.tree.norm(direction)
        direction = jax.tree.map(lambda d, length=length: d / length, direction)

        def loss(t, direction=direction):
            moved = jax.tree.map(lambda p, d: p + jnp.float32(t) * d, learns, direction)
            params = {**moved, "target": {**state.params["target"], **moved["target"]}}
            return float(step(state.replace(params=params), frozen, batch)[1]["loss"])

        numeric = (loss(5e-3) - loss(-5e-3)) / 1e-2
        analytic = float(optax.tree.vdot(gradient, direction))
        assert analytic == pytest.approx(numeric, rel=0.02, abs=0.003)


def _branches(tree, like):
    """The parts of `tree` that `like` has."""
    return {key: _branches(tree[key], like[key]) for key in like} if isinstance(like, dict) else tree


def test_alpha_zero_is_plain_cross_entropy_training_step_for_step():
    settings = {"alpha": 0.0, "beta": 0.2, "weight_decay": 0.1}
    curves, finals = [], []
    for name in ("ast", "l2"):
        task = tiny.task(tiny.stage(name, **settings))
        state, frozen = start(task)
        curve = []
        for k in range(10):
            state, metrics = Devices().compile(task)(state, frozen, tiny.batch(seed=k))
            curve.append(float(metrics["cross_entropy"]))
        curves.append(curve)
        finals.append((state.params["target"], state.batch_stats))
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *finals)


def test_without_alpha_the_attention_gets_no_gradient():
    task = tiny.task(tiny.stage("ast", alpha=0.0))
    state, frozen = start(task)
    before = jax.tree.map(np.array, state.params["attention"])
    after = Devices().compile(task)(state, frozen, tiny.batch())[0].params["attention"]
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_alignment_is_zero_in_eval_mode_and_positive_at_the_first_step():
    """The released code's BatchNorm modes: the same weights give Ω > 0, because only the target uses the batch."""
    variables = tiny.variables()
    task = tiny.task(tiny.stage("dfa"))
    frozen = Frozen(teacher={**variables, "params": {**variables["params"], "fc": _source_head()}})
    images = jnp.asarray(tiny.batch()["image"])
    state = init_state(task, variables, frozen, images, jax.random.PRNGKey(0))
    metrics = jax.jit(make_step(task))(state, frozen, tiny.batch())[1]
    assert metrics["alignment/conv1"] == 0  # before the first BatchNorm
    assert metrics["alignment/conv2"] > 0  # behind it


def _source_head():
    return tiny.variables(tiny.SOURCE_CLASSES)["params"]["fc"]


def test_the_state_owns_its_memory():
    """The first stage's target and teacher come from the same arrays; giving the state away must not take them."""
    task = tiny.task(tiny.stage("ast"))
    shared = tiny.variables(tiny.SOURCE_CLASSES)
    frozen = Frozen(teacher=shared)
    target = {**shared, "params": {**shared["params"], "fc": tiny.variables()["params"]["fc"]}}
    state = init_state(task, target, frozen, jnp.asarray(tiny.batch()["image"]), jax.random.PRNGKey(0))
    for _ in range(2):
        state, _ = Devices().compile(task)(state, frozen, tiny.batch())
    jax.block_until_ready(jax.tree.map(jnp.sum, frozen))  # raises if the memory is gone


def test_each_step_has_random_numbers_of_its_own():
    """The same batch at two steps is cropped differently, and at the same step alike."""
    from dataclasses import replace

    task = tiny.task(tiny.stage("l2", learning_rate=0.0))
    task = replace(task, preprocess=replace(task.preprocess, size=tiny.SIZE - 2))
    state, frozen = start(task)
    step = jax.jit(make_step(task))
    losses = [float(step(state.replace(step=jnp.int32(k)), frozen, tiny.batch())[1]["loss"]) for k in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_dropout_is_drawn_anew_at_each_step_and_never_for_the_teacher():
    """MobileNetV2's and Inception's; with a batch and a crop that are always the same, nothing else is random."""
    from dataclasses import replace

    class Dropping(tiny.TinyNet):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Conv(4, (3, 3), use_bias=False, name="conv1")(x)
            x = nn.Dropout(0.5, deterministic=not train)(x)
            return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))

    stage = tiny.stage("dfa", learning_rate=0.0, taps=("conv1",))
    task = replace(tiny.task(stage), target=Dropping(3), teacher=Dropping(3))
    variables = Dropping(3).init(jax.random.key(0), jnp.zeros((1, tiny.SIZE, tiny.SIZE, 3)))
    frozen = Frozen(teacher=variables)
    state = init_state(task, variables, frozen, jnp.asarray(tiny.batch()["image"]), jax.random.PRNGKey(0))
    step = jax.jit(make_step(task))
    found = [step(state.replace(step=jnp.int32(k)), frozen, tiny.batch())[1] for k in (0, 1, 0)]
    assert found[0]["loss"] == found[2]["loss"] != found[1]["loss"]
    # The tap is before the dropout, so that target and teacher agree there.
    assert all(metrics["alignment"] == 0 for metrics in found)


def test_seeds_alphas_and_betas_share_one_compilation(monkeypatch):
    light, heavy = (tiny.task(tiny.stage("ast", alpha=alpha, beta=alpha / 2)) for alpha in (0.25, 3.0))
    traced = []

    def count(task, *rest):
        traced.append(task.stage.name)
        return make_step(task, *rest)

    monkeypatch.setattr(parallel, "make_step", count)
    parallel._compile.cache_clear()
    for task in (light, heavy):
        state, frozen = start(task)
        expected, _ = compilation.jit(make_step(task))(state, frozen, tiny.batch())
        found, metrics = Devices().compile(task)(state, frozen, tiny.batch())
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected)
        loss = metrics["cross_entropy"] + task.stage.settings["alpha"] * metrics["alignment"]
        np.testing.assert_allclose(metrics["loss"], loss + task.stage.settings["beta"] * metrics["head_penalty"], 1e-6)
    assert traced == ["ast"]
    other = tiny.task(tiny.stage("act", alpha=0.25, beta=0.125))
    Devices().compile(other)(*start(other), tiny.batch())
    assert traced == ["ast", "act"]


@pytest.mark.parametrize("method", ["l2", "ast", "bss", "l2_fe"])
def test_by_angle_the_loss_is_arcfaces(method):
    """s·cos(θ + m) at the label, s·cos θ elsewhere, in NumPy from what the head takes in."""
    plain = tiny.task(tiny.stage(method))
    loss = Loss("arcface", scale=8.0, margin=0.3)
    target, teacher = (CosineHead(network, "fc", loss.scale) for network in (plain.target, plain.teacher))
    task = replace(plain, target=target, teacher=teacher, loss=loss)
    state, frozen = start(task)
    batch = tiny.batch()
    moved, metrics = jax.jit(make_step(task))(state, frozen, batch)

    images = jnp.asarray(batch["image"] / np.float32(255), jnp.float32)
    variables = {"params": state.params["target"], "batch_stats": state.batch_stats}
    train = not task.stage.method.head_only
    features = forward(plain.target, variables, images, taps=("fc:input",), train=train).features
    embedding = np.asarray(features["fc:input"], np.float64)
    kernel = np.asarray(state.params["target"]["fc"]["kernel"], np.float64)
    cosines = embedding @ kernel / np.linalg.norm(embedding, axis=1, keepdims=True) / np.linalg.norm(kernel, axis=0)
    angles = np.arccos(cosines)
    angles[np.arange(8), batch["label"]] += 0.3
    logits = 8 * np.cos(angles)
    expected = -np.mean(np.log(softmax(logits))[np.arange(8), batch["label"]])
    np.testing.assert_allclose(metrics["cross_entropy"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["top1"], (cosines.argmax(1) == batch["label"]).mean())
    # Weight decay and ½·beta·‖head‖² alone move the bias, which has no part in the angle.
    decay = task.stage.settings["beta"] + task.stage.settings["weight_decay"]
    bias = np.asarray(state.params["target"]["fc"]["bias"])
    np.testing.assert_allclose(moved.params["target"]["fc"]["bias"], bias * (1 - 0.1 * decay), rtol=1e-5, atol=1e-8)


def test_by_angle_parts_of_a_batch_and_remat_give_the_same_step():
    plain = tiny.task(tiny.stage("l2_fe"))  # whose BatchNorm does not look at the batch
    task = replace(plain, target=CosineHead(plain.target, "fc", 8.0), loss=Loss("arcface", 8.0, 0.3))
    state, frozen = start(task)
    whole, other = (
        jax.jit(make_step(replace(task, **changes)))(state, frozen, tiny.batch())[0]
        for changes in ({}, {"accumulate": 2, "remat": True})
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), whole.params, other.params)


def test_by_angle_a_kept_head_is_read_as_the_network_reads_it():
    plain = tiny.task(tiny.stage("lwf"))
    task = replace(plain, target=CosineHead(plain.target, "fc", 8.0), loss=Loss("arcface", 8.0))
    variables, images = tiny.variables(), jnp.asarray(tiny.batch()["image"] / np.float32(255), jnp.float32)
    found = forward(task.target, variables, images, taps=("fc:input",))
    said = task.classify(found.features["fc:input"], variables["params"]["fc"])
    np.testing.assert_allclose(said, found.logits, rtol=1e-6)
    assert plain.classify is linear
