"""The figures of `evaluate` are those of the run on its own data, and those counted by hand on others."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from afa_jax.config import settle
from afa_jax.data.augment import Preprocess
from afa_jax.data.dataset import Split
from afa_jax.evaluate import assess, main, settled
from afa_jax.evaluation.classification import evaluate
from afa_jax.inference.assessment import Counts, count, places, report
from afa_jax.inference.classifier import Classifier, classifier
from afa_jax.inference.finished import reopen
from tests import tiny


def told(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_the_runs_own_test_images_give_its_own_result(finished, capsys, tmp_path):
    status, out, err = told(capsys, finished, "-o", tmp_path / "new" / "said.json")
    result = json.loads((tmp_path / "new" / "said.json").read_text())
    summary = json.loads((finished / "summary.json").read_text())
    assert (status, err) == (0, "") and out.startswith("digits, test: top-1 ")
    assert result["top1"] == pytest.approx(summary["last_top1"]) and result["images"] == 1767
    assert result["cross_entropy"] == pytest.approx(summary["stages"][-1]["last_cross_entropy"], abs=1e-4)
    assert (result["recipe"], result["seed"], result["views"]) == ("afa", 0, "centre crop")
    assert sum(one["images"] for one in result["per_class"]) == 1767
    assert sum(one["correct"] for one in result["per_class"]) == round(1767 * result["top1"])


def test_figures_by_hand():
    confusion = np.array([[3, 1, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]])
    result = report(Counts(confusion, 5.0), ("a", "b", "c", "d"), pairs=2)
    assert result == {
        "images": 10,
        "top1": 0.6,
        "cross_entropy": 0.5,
        "per_class": [
            {"class": "a", "images": 4, "correct": 3, "top1": 0.75},
            {"class": "b", "images": 4, "correct": 2, "top1": 0.5},
            {"class": "d", "images": 2, "correct": 1, "top1": 0.5},
        ],
        "confused": [
            {"true": "b", "predicted": "a", "images": 2, "share": 0.5},
            {"true": "d", "predicted": "b", "images": 1, "share": 0.5},  # one of two, before one of four
        ],
    }


def small(classes):
    plain = Preprocess(tiny.SIZE, flip=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    return Classifier(tiny.TinyNet(len(classes)), tiny.variables(len(classes)), classes, plain, tiny.SIZE, False)


def test_classes_are_matched_by_name_in_any_order():
    network, made = small(("a", "b", "c")), tiny.batch(11)
    split = Split(made["image"], made["label"] % 2)  # 0: c, 1: a
    counts = count(network, split, ("c", "a"), batch_size=4)
    logits = network.logits(made["image"])
    labels = np.array([2, 0])[split.labels]
    expected = np.zeros((3, 3), int)
    for label, said in zip(labels, logits.argmax(1), strict=True):
        expected[label, said] += 1
    np.testing.assert_array_equal(counts.confusion, expected)
    whole = evaluate(network.module, network.variables, Split(made["image"], labels), network.preprocess, 11)
    assert counts.loss / 11 == pytest.approx(whole["cross_entropy"], rel=1e-5)


def test_classes_that_do_not_fit():
    with pytest.raises(
        Exception, match=r"has 2 classes and the network 3, which does not know 1 of them, such as 'bb'; did you mean b"
    ):
        places(("aa", "bbb", "cc"), ("aa", "bb"))


@pytest.fixture
def pictures(tmp_path):
    """Two of the digits' classes, four pictures each."""
    random = np.random.default_rng(5)
    for name in ("7", "2"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(random.integers(0, 256, (10, 10, 3), np.uint8)).save(tmp_path / f"pictures/{name}/{i}.png")
    return tmp_path / "pictures"


def test_another_data_set(finished, pictures, capsys, tmp_path):
    settings = ("--config.data.name=image_folder", f"--config.data.dir={pictures}")
    output = tmp_path / "said.json"
    assert told(capsys, finished, "--split=all", "-o", output, *settings)[0] == 0
    result, network = json.loads(output.read_text()), classifier(reopen(finished))
    assert [(one["class"], one["images"]) for one in result["per_class"]] == [("2", 4), ("7", 4)]
    files = {name: sorted((pictures / name).iterdir()) for name in ("2", "7")}
    right = [network(files[name]).argmax(1) == int(name) for name in files]
    assert [one["correct"] for one in result["per_class"]] == [int(r.sum()) for r in right]
    assert result["data"]["per_class"] == 0 and result["data"]["image_size"] == 8
    file = tmp_path / "other.py"
    file.write_text(
        "from afa_jax.config import default\ndef get_config():\n c = default()\n c.data.name = 'image_folder'\n"
        f" c.data.dir = {str(pictures)!r}\n c.data.image_size = c.data.resize = 8\n return c"
    )
    assert told(capsys, finished, f"--config={file}", "--split=all", "-o", output)[0] == 0
    assert json.loads(output.read_text())["top1"] == result["top1"]


def test_other_data_are_taken_whole_unless_that_is_said():
    run = settle(tiny.config("l2", **{"data.fold": "1/3", "data.dir": "x"}))
    assert settled(run, None, []) == run
    other = settled(run, None, ["--config.data.name=letters"]).data
    assert (other.name, other.per_class, other.fold, other.dir) == ("letters", 0, "", "")
    other = settled(run, None, ["--config.data.name=letters", "--config.data.per_class=2"]).data
    assert other.per_class == 2


def test_ten_crops(finished, pictures):
    run = reopen(finished)
    settings = ["--config.data.name=image_folder", f"--config.data.dir={pictures}", "--config.data.resize=9"]
    experiment = settled(run.experiment, None, [*settings, "--config.data.augmentation=improved"])
    network = classifier(replace(run, experiment=experiment))
    assert network.ten_crop and network.preprocess.flip  # photos may be mirrored, digits may not
    result = assess(network, experiment, "test", 1)
    assert result["views"] == "ten crops" and result["images"] == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--config.data.name=letters",), "such as"),
        (("--config.data.nam=letters",), "There is no setting config.data.nam; did you mean"),
        (("--config.recipe=l2",), "config.recipe is the run's own"),
        (("--config.data.name=image_folder",), "give --config.data.dir=FOLDER"),
        (("--config=none.py",), "There is no config file none.py"),
        (("stray",), "The argument 'stray' means nothing here"),
        (("--config.data.test_fraction=x",), "test_fraction"),
    ],
)
def test_refused(finished, capsys, arguments, sentence):
    status, out, err = told(capsys, finished, *arguments)
    assert status == 2 and out == "" and sentence in err and err.count("\n") == 1 and err.startswith("evaluate: ")
