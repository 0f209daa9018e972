"""What is measured before a stage: DELTA's weights against their definition, the other constants, and their files."""

import json
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from safetensors.numpy import load_file, save_file

from afa_jax.data.dataset import Split
from afa_jax.errors import UserError
from afa_jax.models import zoo
from afa_jax.training import prepare as module
from afa_jax.training.prepare import prepare, read_increases
from afa_jax.transfer.attention import SpatialAttention
from afa_jax.transfer.category_relationship import category_relationship
from afa_jax.transfer.channel_weights import channel_weights, loss_increases
from afa_jax.transfer.method import Anatomy, Frozen
from tests import tiny

CHANNELS = {"conv1": 4, "conv2": 5}
IMAGES = tiny.batch(20, seed=9)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def losses(logits, labels):
    return -np.log(softmax(np.asarray(logits, np.float64)))[np.arange(len(labels)), labels]


def definition(images, labels, tap):
    """DELTA eq. 9 to the letter: one filter's weights set to zero at a time, the whole network each time."""
    network, variables = tiny.TinyNet(tiny.CLASSES), tiny.variables(seed=5)
    whole = losses(network.apply(variables, images), labels).mean()
    found = []
    for c in range(CHANNELS[tap]):
        kernel = variables["params"][tap]["kernel"].at[..., c].set(0)
        without = {**variables, "params": {**variables["params"], tap: {"kernel": kernel}}}
        found.append(losses(network.apply(without, images), labels).mean() - whole)
    return found


@pytest.mark.parametrize("batch", [20, 8])
def test_deltas_weights_equal_the_definition_on_all_images(tmp_path, batch):
    """In batches that fill up and in some that do not."""
    stage = tiny.stage("delta")
    task = tiny.task(replace(stage, settings=stage.settings.copy({"batches": 0, "images": batch})))
    frozen = tiny.frozen(task, tmp_path)
    images = jnp.asarray(IMAGES["image"] / np.float32(255), jnp.float32)
    for tap in CHANNELS:
        expected = np.array(definition(images, IMAGES["label"], tap))
        np.testing.assert_allclose(frozen.constants["increases"][tap], expected, atol=1e-5 * abs(expected).max())
        standard = (expected - expected.mean()) / expected.std()
        np.testing.assert_allclose(frozen.constants["channels"][tap], softmax(standard / 5), rtol=1e-4)


def test_deltas_weights_on_some_batches_of_training_images(tmp_path, monkeypatch):
    """The released way: four batches of 32; each image is one of the training split's, with its own label."""
    seen = []
    honest = module._compile_increases
    monkeypatch.setattr(
        module, "_compile_increases", lambda *which: lambda v, batch: (seen.append(batch), honest(*which)(v, batch))[1]
    )
    task = tiny.task(tiny.stage("delta", taps=("conv1",)))
    labels = {image.tobytes(): label for image, label in zip(IMAGES["image"], IMAGES["label"], strict=True)}
    runs = enumerate((0, 0, 1))
    found = [tiny.frozen(task, tmp_path / str(i), seed=seed).constants["increases"]["conv1"] for i, seed in runs]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()
    assert len(seen) == 12 and all(batch["image"].shape[0] == 32 for batch in seen)
    for batch in seen:
        for image, label in zip(np.asarray(batch["image"]), np.asarray(batch["label"]), strict=True):
            assert labels[np.round(image * 255).astype(np.uint8).tobytes()] == label
    assert (seen[0]["image"] != seen[1]["image"]).any()
    expected = np.mean([definition(batch["image"], np.asarray(batch["label"]), "conv1") for batch in seen[:4]], 0)
    np.testing.assert_allclose(found[0], expected, atol=5e-7)  # a few last digits of the loss in float32


class Joined(nn.Module):
    """A tap behind BatchNorm and ReLU whose channels come from two convolutions and a pool, as in Inception."""

    num_classes: int = tiny.CLASSES

    @nn.compact
    def __call__(self, x, train=False):
        block = Block(name="block")
        return nn.Dense(self.num_classes, name="fc")(block(x, train).mean((1, 2)))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        def branch(name, width):
            y = nn.Conv(width, (3, 3), use_bias=False, name=name)(x)
            return nn.relu(nn.BatchNorm(use_running_average=not train, name=f"{name}_bn")(y))

        return jnp.concatenate([branch("a", 4), branch("b", 3), nn.max_pool(x, (3, 3), padding="SAME")], axis=-1)


def test_in_a_tap_of_several_convolutions_it_is_the_filter_that_is_left_out():
    """Its BatchNorm and ReLU make something of the zero; that is not the same as a zero at the tap."""
    random, images = np.random.default_rng(0), jnp.asarray(IMAGES["image"] / np.float32(255), jnp.float32)
    network = Joined()
    template = network.init(jax.random.key(0), images[:1])
    variables = jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.2, 1, leaf.shape), jnp.float32), template)
    where = Anatomy("fc", ("fc",), "fc", FrozenDict({"block": ("block.a", "block.b")}))
    parts = module.filter_parts(where, zoo.layer_shapes(network, tiny.SIZE), "block")
    assert parts == (("block.a", 0, 4, 0), ("block.b", 4, 7, 0), ("block", 7, 10, 7))
    batch = {"image": images, "label": jnp.asarray(IMAGES["label"]), "mask": jnp.ones(20)}
    found = module._increases(network, parts, frozenset(), 10, 5, variables, batch)
    whole = losses(network.apply(variables, images), IMAGES["label"]).mean()
    for c in range(7):
        name, own = ("a", c) if c < 4 else ("b", c - 4)
        changed = jax.tree.map(jnp.asarray, variables)
        kernel = changed["params"]["block"][name]["kernel"]
        changed["params"]["block"][name]["kernel"] = kernel.at[..., own].set(0)
        expected = losses(network.apply(changed, images), IMAGES["label"]).mean() - whole
        np.testing.assert_allclose(found[c], expected, atol=1e-6)
    # A pool's channel has no filter: it is left out at the tap, and what the head makes of it is missing.
    head, pooled = variables["params"]["fc"]["kernel"], nn.max_pool(images, (3, 3), padding="SAME").mean((1, 2))
    logits = network.apply(variables, images) - pooled[:, :1] * head[7]
    np.testing.assert_allclose(found[7], losses(logits, IMAGES["label"]).mean() - whole, atol=1e-6)


@pytest.mark.parametrize("together", [1, 3, 7])
def test_channels_left_out_at_once_change_nothing(together):
    random = np.random.default_rng(0)
    features, head = jnp.asarray(random.normal(size=(6, 7)), jnp.float32), jnp.asarray(random.normal(size=(7, 3)))

    def loss(mask):
        return -jax.nn.log_softmax((features * mask) @ head)[:, 1].mean()

    expected = [loss(jnp.ones(7).at[c].set(0)) - loss(jnp.ones(7)) for c in range(7)]
    np.testing.assert_allclose(loss_increases(loss, jnp.arange(7), 7, together), expected, rtol=1e-5, atol=1e-7)


def test_the_layers_before_the_tap_are_computed_once_for_many_channels():
    """FLOPs of leaving out all channels of the last stage, against as many whole passes."""
    network = zoo.create("resnet10_small", 10)
    variables = zoo.initialise(network, jax.random.key(0), 32)
    batch = {"image": jnp.ones((4, 32, 32, 3)), "label": jnp.zeros(4, int), "mask": jnp.ones(4)}

    parts = (module.Part("layer4.0.conv2", 0, 128, 0),)

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    one = flops(lambda v: network.apply(v, batch["image"]), variables)
    # All at once, so that the compiled program has no loop, whose passes the analysis would not count.
    all_of_them = flops(lambda v: module._increases(network, parts, frozenset(), 128, 128, v, batch), variables)
    assert all_of_them < 0.1 * 128 * one


def test_the_papers_weights_are_a_plain_softmax_and_equal_channels_weigh_the_same():
    increases = {"a": jnp.array([0.1, -0.2, 0.4]), "b": jnp.full(4, 0.3)}
    np.testing.assert_allclose(channel_weights(increases, "paper")["a"], softmax(np.array([0.1, -0.2, 0.4])), rtol=1e-6)
    for convention in ("released", "normalised", "paper"):
        weights = channel_weights(increases, convention)
        assert weights["a"][2] > weights["a"][0] > weights["a"][1]
        np.testing.assert_allclose(weights["b"], 0.25, rtol=1e-6)


def teacher_outputs(taps):
    images = jnp.asarray(IMAGES["image"] / np.float32(255), jnp.float32)
    return zoo.forward(
        tiny.TinyNet(tiny.SOURCE_CLASSES), tiny.variables(tiny.SOURCE_CLASSES, seed=7), images, taps=taps
    )


@pytest.mark.parametrize("size", [7, 64])
def test_energy_is_the_mean_squared_map_over_all_images(tmp_path, monkeypatch, size):
    watch = module._watch_teacher
    monkeypatch.setattr(module, "_watch_teacher", lambda *a: watch(*a, batch_size=size))
    stage = tiny.stage("ast")
    task = tiny.task(replace(stage, settings=stage.settings.copy({"convention": "normalised"})))
    energy = tiny.frozen(task, tmp_path).constants["energy"]
    for tap, feature in teacher_outputs(task.stage.taps).features.items():
        expected = (np.asarray(feature, np.float64) ** 2).sum((1, 2, 3)).mean()
        np.testing.assert_allclose(energy[tap], expected, rtol=1e-5)


def test_nothing_is_measured_and_no_file_left_where_nothing_is_needed(tmp_path):
    assert tiny.frozen(tiny.task(tiny.stage("ast")), tmp_path).constants == {}
    assert list(tmp_path.iterdir()) == []


def test_recorded_outputs_are_the_teachers_in_the_order_of_the_images(tmp_path):
    logits = tiny.frozen(tiny.task(tiny.stage("lwf")), tmp_path).constants["logits"]
    np.testing.assert_allclose(logits, teacher_outputs(()).logits, rtol=1e-5, atol=1e-6)


def test_fixed_attention_is_the_mean_of_the_trained_modules(tmp_path):
    task = tiny.task(tiny.stage("ast_fixed"))
    features = teacher_outputs(task.stage.taps).features
    attention = {tap: SpatialAttention().init(jax.random.key(3), f)["params"] for tap, f in features.items()}
    positions = tiny.frozen(task, tmp_path, attention=attention).constants["positions"]
    for tap, feature in features.items():
        expected = SpatialAttention().apply({"params": attention[tap]}, feature).mean(0)
        np.testing.assert_allclose(positions[tap], expected, rtol=1e-5)
        np.testing.assert_allclose(positions[tap].sum(), 1, rtol=1e-5)


def test_the_category_relationship_finds_which_classes_go_together():
    """Target class 0 looks like source classes 0 and 1, class 1 like 2, class 2 like 3; the rows are distributions."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 30)
    sources = np.where(labels == 0, random.integers(0, 2, 90), labels + 1)
    probabilities = 0.9 * np.eye(5)[sources] + 0.1 * random.dirichlet(np.ones(5), 90)
    found = category_relationship(probabilities, labels)
    assert found.shape == (3, 5) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert found[0, :2].sum() > 0.8 and found[1, 2] > 0.7 and found[2, 3] > 0.7
    few = category_relationship(probabilities[::15], labels[::15])
    assert np.isfinite(few).all()


def test_the_relationship_is_bayes_rule_on_the_regressions_answer():
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(1)
    probabilities, labels = random.dirichlet(np.ones(4), 12), np.repeat([0, 1, 2], 4)  # too few to hold any out
    model = LogisticRegression(C=1.0, max_iter=200).fit(probabilities, labels)
    expected = np.zeros((3, 4))
    for target in range(3):
        for source in range(4):
            given = model.predict_proba(np.eye(4)[[source]])[0, target]
            expected[target, source] = given * probabilities[:, source].mean()
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(category_relationship(probabilities, labels), expected, rtol=1e-5)


def test_a_run_that_goes_on_does_not_measure_again(tmp_path, monkeypatch):
    task = tiny.task(tiny.stage("delta"))
    before = tiny.frozen(task, tmp_path)
    monkeypatch.setattr(module, "_loss_increases", lambda *a: pytest.fail("measured again"))
    again = tiny.frozen(task, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, before.constants, again.constants)
    assert [file.name for file in tmp_path.iterdir()] == ["constants.safetensors"]
    (tmp_path / "constants.safetensors").write_bytes(b"12345678")
    with pytest.raises(UserError, match="is damaged: remove it, and it is measured again"):
        tiny.frozen(task, tmp_path)


def test_published_weights_are_read(tmp_path):
    file = tmp_path / "weights.json"
    file.write_text(json.dumps([[0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4, 5]]))
    found = read_increases(file, CHANNELS)
    np.testing.assert_allclose(found["conv2"], [1, 2, 3, 4, 5])
    stage = tiny.stage("delta")
    task = tiny.task(replace(stage, settings=stage.settings.copy({"channel_weights": str(file)})))
    constants = tiny.frozen(task, tmp_path).constants
    np.testing.assert_allclose(constants["channels"]["conv1"], channel_weights(found, "released")["conv1"], rtol=1e-6)
    assert load_file(tmp_path / "constants.safetensors")["increases/conv2"].tolist() == [1, 2, 3, 4, 5]
    # What one run has measured, another may take.
    jax.tree.map(np.testing.assert_array_equal, read_increases(tmp_path / "constants.safetensors", CHANNELS), found)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[[1, 2, 3, 4], [1, 2, 3, 4]]", "has 4 values for the tap conv2, which has 5 channels"),
        ("[[1, 2, 3, 4]]", r"must be a JSON list of 2 lists of numbers, one a tap \(conv1, conv2\)"),
        ("{", "must be a JSON list of 2 lists"),
        ("3", "must be a JSON list of 2 lists"),
        ('[[1, 2, 3, "x"], [1, 2, 3, 4, 5]]', "what it has for the tap conv1 are no numbers"),
        ("[[1, 2, 3, NaN], [1, 2, 3, 4, 5]]", "has values that are not finite for the tap conv1"),
        ("[[1, 2, 3, 4], [[1], [2], [3], [4], [5, 6]]]", "what it has for the tap conv2 are no numbers"),
    ],
)
def test_wrong_files_of_weights_name_the_tap(tmp_path, content, sentence):
    (tmp_path / "weights.json").write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_increases(tmp_path / "weights.json", CHANNELS)


def test_a_file_that_no_run_has_kept_is_refused(tmp_path):
    file = tmp_path / "weights.safetensors"
    for write in (
        lambda: save_file({"increases": np.ones(4, np.float32)}, file),
        lambda: save_file({"channels/conv1": np.ones(4, np.float32)}, file),
        lambda: file.write_bytes(b"damaged"),
    ):
        write()
        with pytest.raises(UserError, match=r"weights.safetensors holds no loss increases that a run has kept\."):
            read_increases(file, CHANNELS)


def test_no_file_of_weights(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        read_increases(tmp_path / "weights.json", CHANNELS)


def test_a_split_smaller_than_a_batch(tmp_path):
    """Five labelled images may be fewer than the images a batch of any measurement has."""
    task = tiny.task(tiny.stage("delta"))
    made = tiny.batch(5)
    frozen = prepare(
        task,
        Frozen(teacher=tiny.variables(tiny.SOURCE_CLASSES)),
        Split(made["image"], made["label"]),
        before=tiny.variables(),
        attention={},
        seed=0,
        file=tmp_path / "constants.safetensors",
        tell=lambda sentence: None,
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(frozen.constants))
