"""What is measured before a stage: DELTA's weights against their definition, the other constants, and their files."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from afa_jax.data.dataset import Split
from afa_jax.errors import UserError
from afa_jax.models import zoo
from afa_jax.training import prepare as module
from afa_jax.training.prepare import prepare, read_increases
from afa_jax.transfer.attention import SpatialAttention
from afa_jax.transfer.category_relationship import category_relationship
from afa_jax.transfer.channel_weights import channel_weights, loss_increases
from afa_jax.transfer.method import Frozen
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


def test_deltas_weights_on_some_batches_are_seeded_and_from_the_training_images(tmp_path, monkeypatch):
    seen = []
    honest = module._increases
    monkeypatch.setattr(module, "_increases", lambda *a: (seen.append(a), honest(*a))[1])
    task = tiny.task(tiny.stage("delta", taps=("conv1",)))
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first, again = (tiny.frozen(task, tmp_path / name).constants["increases"]["conv1"] for name in "ab")
    np.testing.assert_array_equal(first, again)
    assert len(seen) == 8 and all(len(call[5]["label"]) == 32 for call in seen)
    known = {image.tobytes() for image in (IMAGES["image"] / np.float32(255)).astype(np.float32)}
    np.testing.assert_array_equal(seen[0][5]["image"], seen[4][5]["image"])
    assert (seen[0][5]["image"] != seen[1][5]["image"]).any()
    assert len(known) == 20


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

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    one = flops(lambda v: network.apply(v, batch["image"]), variables)
    # All at once, so that the compiled program has no loop, whose passes the analysis would not count.
    all_of_them = flops(lambda v: module._increases(network, "layer4.0.conv2", 128, 128, v, batch), variables)
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
