"""The page on Python runs as written; what is wrong is said in one sentence; a loop of one's own is the run's step."""

import importlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import afa_jax
from afa_jax.data import catalog
from afa_jax.data.builders import arrays
from afa_jax.data.dataset import Request
from afa_jax.errors import UserError
from afa_jax.inference.files import write_program
from afa_jax.models import own, zoo
from afa_jax.training.step import init_state, make_step
from afa_jax.transfer.method import Frozen
from tests import tiny

ROOT = Path(afa_jax.__file__).parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Networks that a test registers are gone after it."""
    before = dict(zoo.NETWORKS)
    yield
    for name in zoo.NETWORKS.keys() - before.keys():
        del zoo.NETWORKS[name]
    own.NAMES.clear()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the names of the page stand for after its blocks have run, in a folder of their own."""
    names, here = {}, pytest.MonkeyPatch()
    here.chdir(tmp_path_factory.mktemp("page"))
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/api.md", "exec"), names)
    yield names
    here.undo()


@pytest.mark.slow
def test_the_page_runs(page):
    result, vit = page["result"], page["vit"]
    np.testing.assert_allclose(page["probabilities"].sum(1), 1)
    assert result.top1 == result.summary["last_top1"] == result.history[-1]["top1"]
    assert result.model.classes == ("dark", "grey", "light") and f"{100 * result.top1:.1f}" in result.table
    said = result(page["images"][12:]).argmax(1)
    assert (said == page["labels"][12:]).mean() == pytest.approx(result.top1)
    assert [stage["name"] for stage in vit.summary["stages"]] == ["ast", "act"]
    assert vit(page["images"][:2]).shape == (2, 3) and "batch_stats" not in vit.model.variables
    assert page["metrics"]["alignment"] > 0 and page["logits"].shape == (24, 3)
    both = afa_jax.table([result, vit])
    assert "resnet10_small" in both and "small_vit" in both


@pytest.mark.slow
def test_called_again_it_finds_the_finished_run(page, monkeypatch):
    monkeypatch.setattr("afa_jax.experiment.Run.train", None)
    again = afa_jax.finetune(
        "small_vit",
        weights=page["pretrained"],
        data=page["data"],
        steps=4,
        batch_size=6,
        settings={"convention": "normalised"},
    )
    assert again.workdir == page["vit"].workdir and again.top1 == page["vit"].top1


@pytest.mark.slow
def test_tokens_are_maps_of_positions_in_a_row(page):
    vit, images = page["vit"].model, jnp.ones((2, 16, 16, 3))
    tokens = zoo.forward(vit.module, vit.variables, images, taps=("block1",)).features["block1"]
    assert tokens.shape == (2, 16, 1, 16)
    made = page["attention"].init(jax.random.key(0), tokens)
    weights = page["attention"].apply(made, tokens)
    assert weights.shape == (2, 16)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)


@pytest.mark.slow
def test_the_files_of_ones_own_network(page):
    folder = page["vit"].workdir.with_name("own")
    page["export"](page["reopen"](page["vit"].workdir), folder)
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["README.md", "classes.json", "model.safetensors", "model.stablehlo"]
    images = page["images"][:3]
    read = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    np.testing.assert_allclose(read.call(images)["probabilities"], page["vit"](images), atol=1e-5)
    assert "under the paths of Flax's layers" in (folder / "README.md").read_text()


class Counting(nn.Module):
    """Looks at how many images there are."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(4, (3, 3), name="conv")(images)
        return nn.Dense(self.num_classes, name="head")(x.reshape(len(x), -1))


def test_a_network_that_counts_its_images_cannot_be_exported(tmp_path):
    afa_jax.register("counting", afa_jax.Network(lambda n, _: Counting(n), 8, 8, taps={1: ("conv",)}, head="head"))
    module = zoo.create("counting", 2)
    plain = afa_jax.Preprocess(8, flip=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    network = afa_jax.Classifier(module, zoo.initialise(module, jax.random.key(0), 8), ("a", "b"), plain, 8, False)
    with pytest.raises(UserError, match=r"'counting' does not run with a symbol .*: write x\.shape\[0\]"):
        write_program(tmp_path, network, "counting")
    assert list(tmp_path.iterdir()) == []


def test_the_step_is_that_of_a_run():
    task = tiny.task(tiny.stage("ast"))
    init, step = afa_jax.make_train_step(
        *(task.target, task.teacher),
        **{"taps": ("conv1", "conv2"), "head": "fc", "steps": 10, "learning_rate": 0.1, "drop_at": 7},
        **{"alpha": 0.3, "beta": 0.2, "weight_decay": 0.1, "preprocess": task.preprocess},
    )
    key, batch, teacher = jax.random.PRNGKey(3), tiny.batch(), tiny.variables(tiny.SOURCE_CLASSES, seed=7)
    state, frozen = init(key, tiny.variables(), teacher, batch["image"][:1])
    expected = init_state(task, tiny.variables(), Frozen(teacher), batch["image"][:1], key)
    pairs = (step, state), (make_step(task), expected)
    ours, theirs = (jax.jit(run)(begun, Frozen(teacher), batch) for run, begun in pairs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert frozen.constants == {}


def test_images_that_are_normalised_already_stay_as_they_are():
    init, step = afa_jax.make_train_step(
        tiny.TinyNet(3), taps=("conv1",), head="fc", method="dfa", steps=3, learning_rate=0.0, momentum=0.0
    )
    variables, images = tiny.variables(), jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 3)), jnp.float32)
    state, frozen = init(jax.random.key(0), variables, variables, images[:1])
    _, metrics = jax.jit(step)(state, frozen, {"image": images, "label": jnp.array([0, 1, 2, 0])})
    logits = zoo.forward(tiny.TinyNet(3), variables, images, train=True).logits
    losses = -jax.nn.log_softmax(logits)[jnp.arange(4), jnp.array([0, 1, 2, 0])]
    assert float(metrics["cross_entropy"]) == pytest.approx(float(losses.mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "as"}, "There is no method 'as'; did you mean"),
        ({"alpa": 1.0}, "The method ast has no setting 'alpa'; did you mean alpha"),
    ],
)
def test_wrong_steps(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        afa_jax.make_train_step(tiny.TinyNet(3), taps=("conv1",), head="fc", steps=3, **arguments)


def test_a_method_that_measures_wants_its_constants():
    given = {"taps": ("conv1",), "head": "fc", "steps": 3}
    for method, convention in (("delta", "released"), ("ast", "normalised")):
        init, _ = afa_jax.make_train_step(tiny.TinyNet(3), **given, method=method, convention=convention)
        with pytest.raises(UserError, match=f"The method {method} measures something before its first step"):
            init(jax.random.key(0), tiny.variables(), tiny.variables(), jnp.zeros((1, 6, 6, 3)))


class Flat(nn.Module):
    """A network of one's own with everything that may be wrong with it."""

    num_classes: int
    wrong: str = ""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(4, (3, 3), name="conv")(images)
        x = nn.Dense(5, name="flat")(x.mean((1, 2)))
        if self.wrong == "raises":
            raise ValueError("it cannot\nfor a reason")
        return nn.Dense(self.num_classes + (self.wrong == "classes"), name="head")(x)


def entry(wrong="", **changes):
    return replace(
        afa_jax.Network(lambda n, _: Flat(n, wrong), image_size=8, resize=8, taps={1: ("conv",)}, head="head"),
        **changes,
    )


@pytest.mark.parametrize(
    ("name", "network", "sentence"),
    [
        ("resnet18", entry(), "The zoo has a network 'resnet18' already"),
        ("mine", entry("raises"), r"cannot be run as build\(7, float32\).*\[1, 8, 8, 3\]: it cannot$"),
        ("mine", entry(build=lambda n, _: nn.Dense(n)), "unexpected keyword argument 'train'"),
        ("mine", entry("classes"), r"must give logits \[batch, classes\], and gives \[1, 8\]"),
        ("mine", entry(head="heads"), "no Dense layer 'heads' that gives the logits; did you mean head"),
        ("mine", entry(head="flat"), "no Dense layer 'flat' that gives the logits"),
        ("mine", entry(taps={}), "names no taps"),
        ("mine", entry(taps={2: ("conv",)}), "lists 1 layers as its 2 taps"),
        ("mine", entry(taps={1: ("con",)}), "no layer 'con' to tap; did you mean conv"),
        ("mine", entry(taps={1: ("flat",)}), r"'flat' of 'mine' gives neither a map nor tokens but \[1, 5\]; .*conv"),
    ],
)
def test_a_network_that_will_not_do(name, network, sentence):
    before = dict(zoo.NETWORKS)
    with pytest.raises(UserError, match=sentence):
        afa_jax.register(name, network)
    assert before == zoo.NETWORKS


def test_a_name_may_be_registered_anew_by_its_owner():
    assert afa_jax.register("mine", entry()) == "mine"
    wide = entry(taps={1: ("conv",)}, image_size=10)
    afa_jax.register("mine", wide)
    assert zoo.NETWORKS["mine"].image_size == 10


SMALL = afa_jax.Arrays(
    *(np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1]), np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1])),
    ("a", "b"),
)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"data": "no_such"}, "There is no data set 'no_such'"),
        ({"data": "digits", "network": "resnet81"}, "config.network is 'resnet81'.*did you mean resnet18"),
        ({"data": "digits", "recipe": "afa,l2"}, "finetune makes one run"),
        ({"data": "digits", "stepz": 3}, "There is no setting config.stepz; did you mean steps"),
        ({"data": "digits", "steps": "3"}, "config.steps is '3'; it must be of type int"),
        ({"data": SMALL._replace(classes=("a", "a"))}, "classes must be two or more names, each once"),
        ({"data": SMALL._replace(train_labels=np.array([0, 1, 2, 1]))}, "places in classes, from 0 to 1"),
        ({"data": SMALL._replace(test_labels=np.array([0.0, 1.0]))}, "test_labels must be 2 whole numbers"),
        ({"data": SMALL._replace(test_images=np.zeros((2, 8, 8, 3)))}, r"uint8 \[N, height, width, 3\], not float64"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        afa_jax.finetune(**{"network": "resnet18", "workdir": tmp_path / "run", **arguments})
    assert not (tmp_path / "run").exists()


def test_arrays_are_read_back_and_resized(tmp_path):
    random = np.random.default_rng(0)
    given = SMALL._replace(train_images=random.integers(0, 256, (4, 8, 8, 3), np.uint8))
    arrays.save(tmp_path / "mine.npz", given._asdict())
    found = catalog.load("arrays", Request(8, 8, folder=str(tmp_path / "mine.npz"), per_class=1))
    assert found.classes == ("a", "b") and sorted(found.train.labels) == [0, 1] and len(found.test) == 2
    whole = catalog.load("arrays", Request(8, 8, folder=str(tmp_path / "mine.npz")))
    np.testing.assert_array_equal(whole.train.images, given.train_images)
    assert catalog.load("arrays", Request(6, 6, folder=str(tmp_path / "mine.npz"))).train.images.shape == (4, 6, 6, 3)
    (tmp_path / "no.npz").write_text("nothing")
    for file, sentence in (("no.npz", "is no .npz file of arrays"), ("none.npz", "give --config.data.dir=FILE")):
        with pytest.raises(UserError, match=sentence):
            catalog.load("arrays", Request(8, folder=str(tmp_path / file)))
    np.savez(tmp_path / "half.npz", classes=["a", "b"])
    with pytest.raises(UserError, match="train_images is missing"):
        catalog.load("arrays", Request(8, folder=str(tmp_path / "half.npz")))


def test_the_import_is_quick_and_every_name_is_there():
    code = "import sys, afa_jax; print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
    for name in afa_jax._PLACES:
        assert getattr(afa_jax, name).__module__.startswith("afa_jax.") and name in dir(afa_jax)
    stub = (ROOT / "afa_jax" / "__init__.pyi").read_text()
    assert {name: f"afa_jax.{place}" for name, place in afa_jax._PLACES.items()} == {
        name: place for place, name in re.findall(r"from (\S+) import \w+ as (\w+)", stub)
    }
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        importlib.import_module("afa_jax").nothing  # noqa: B018
