"""A finished run opened again: who taught whom, and what is said where something is gone."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from afa_jax.analysis.trained import TrainedRun, watch
from afa_jax.data.dataset import Split
from afa_jax.errors import UserError
from afa_jax.experiment import source_network
from afa_jax.models import weights
from tests.analysis import by_hand


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, dict(a), dict(b))


def test_the_teacher_of_stage_two_is_stage_ones_target_with_the_sources_head(trained, finished):
    first, second = trained.stages
    assert [s.stage.name for s in trained.stages] == ["ast", "act"]
    source = weights.load("resnet10_small", source_network(trained.experiment))
    same(first.teacher.variables, source)
    target, attention = by_hand.checkpoint(finished, "1-ast", 4)
    same(first.attention, attention)
    teacher = second.teacher.variables
    same(teacher["params"], {**target["params"], "fc": source["params"]["fc"]})
    same(teacher["batch_stats"], target["batch_stats"])
    last, attention = by_hand.checkpoint(finished, "2-act", 4)
    same(second.attention, attention)
    same(trained.target.variables, last)


def test_the_start_is_the_source_with_the_new_head_that_the_run_began_with(trained, finished):
    source = weights.load("resnet10_small", source_network(trained.experiment))
    start = trained.start.variables["params"]
    same({**start, "fc": 0}, {**source["params"], "fc": 0})
    key = jax.random.fold_in(jax.random.PRNGKey(0), 0)
    same(start["fc"], weights.with_new_head(source, "resnet10_small", 10, key)["params"]["fc"])


def test_opening_leaves_every_file_as_it_was(copied):
    before = {f: f.stat().st_mtime_ns for f in copied.rglob("*")}
    run = TrainedRun(copied)
    assert len(run.stages) == 2 and run.target and len(run.test) == 1767
    assert before == {f: f.stat().st_mtime_ns for f in copied.rglob("*")}


def test_every_image_is_watched_once_whatever_the_batch(trained):
    split = trained.data.train
    whole = np.concatenate([s.logits for s in watch(trained.target, trained.preprocess, split)])
    parts = list(watch(trained.target, trained.preprocess, split, ("layer2",), batch_size=7))
    np.testing.assert_allclose(np.concatenate([s.logits for s in parts]), whole, atol=1e-5)
    assert [s.features["layer2"].shape for s in parts] == [(7, 4, 4, 32)] * 4 + [(2, 4, 4, 32)]
    expected = by_hand.features(trained.target.variables, split.images[:], ())[1]
    np.testing.assert_allclose(whole, expected, atol=1e-4)


def test_ten_crop_images_are_seen_by_the_middle_one(trained):
    crops = np.arange(2 * 5 * 4, dtype=np.uint8).reshape(2, 5, 2, 2, 1)
    run = TrainedRun(trained.folder)
    run.data = replace(trained.data, test=Split(crops, np.zeros(2, np.int32)))
    run.experiment = replace(run.experiment, data=replace(run.experiment.data, augmentation="improved"))
    np.testing.assert_array_equal(run.test.images[np.array([1])], crops[1:, 4])
    np.testing.assert_array_equal(run.test.images[0], crops[0, 4])


def test_the_last_tap_is_the_layer_where_none_is_named(trained):
    assert trained.layer("") == "layer4.0.conv2" and trained.layer("layer1") == "layer1"
    with pytest.raises(UserError, match=r"no layer 'layer4\.7' with feature maps; did you mean .*layer4"):
        trained.layer("layer4.7")
    with pytest.raises(UserError, match="no layer 'fc'"):
        trained.layer("fc")


def spoil_settings(folder):
    summary = json.loads((folder / "summary.json").read_text())
    summary["experiment"]["shape"] = "round"
    (folder / "summary.json").write_text(json.dumps(summary))


def spoil_origin(what):
    def spoil(folder):
        origin = json.loads((folder / "origin.json").read_text())
        (folder / "origin.json").write_text(json.dumps({**origin, what: "another"}))

    return spoil


def spoil_checkpoint(folder):
    file = max((f for f in (folder / "checkpoints" / "2-act" / "4" / "state").rglob("*") if f.is_file()), key=len_of)
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def len_of(file):
    return file.stat().st_size


@pytest.mark.parametrize(
    ("spoil", "look", "sentence"),
    [
        (lambda f: (f / "summary.json").unlink(), "experiment", "There is no finished run in"),
        (spoil_settings, "experiment", "of another version of afa_jax: There is no setting config.shape"),
        (lambda f: shutil.rmtree(f / "checkpoints"), "stages", r"The last checkpoint in .*1-ast is not there"),
        (lambda f: shutil.rmtree(f / "checkpoints/2-act/4"), "stages", "The checkpoint at the end of .*2-act is not"),
        (spoil_checkpoint, "stages", "The last checkpoint in .*2-act is damaged"),
        (lambda f: shutil.rmtree(f / "model"), "target", "The trained network .* is not there"),
        (lambda f: (f / "origin.json").unlink(), "start", "origin.json, which says where the run began, is lost"),
        (spoil_origin("source network"), "start", "The source network is not what the run in"),
        (spoil_origin("images"), "data", "The images are not those with which"),
    ],
)
def test_what_is_gone_is_said(copied, spoil, look, sentence):
    spoil(copied)
    with pytest.raises(UserError, match=sentence):
        getattr(TrainedRun(copied), look)
