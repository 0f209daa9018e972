"""What is left in a run's folder, when it is made again, and that nothing is half-written."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from afa_jax.analysis import analyses
from afa_jax.analysis.activations import normalise
from afa_jax.analysis.analyses import NothingToShow, Options, analyse, analyse_all
from afa_jax.analysis.trained import TrainedRun
from afa_jax.errors import UserError
from afa_jax.report.analyses import READERS
from tests.analysis import by_hand

TWO = Options(number=2)


def test_the_cheap_ones_leave_what_the_report_reads(copied):
    told, complaints = [], []
    assert analyse_all([copied], (), TWO, tell=told.append, complain=complaints.append)
    folder = copied / "analysis"
    names = ("generalisation.json", "filter_distances.json", "attention.json", "activation_maps.npz")
    assert told == [f"{folder / name}: made." for name in names] and not complaints
    assert {f.name for f in folder.iterdir()} == {*names, "attention"}
    assert set(json.loads((folder / "generalisation.json").read_text())) == {"train", "test", "gap", "arguments"}
    stages = json.loads((folder / "filter_distances.json").read_text())["stages"]
    assert all(len(stage["quantiles"]) == 101 for stage in stages.values())
    with np.load(folder / "activation_maps.npz") as maps:
        assert maps["source"].shape == maps["target"].shape == (2, 4, *maps["source"].shape[2:])
        assert str(maps["layer"]) == "layer4.0.conv2" and maps["names"].tolist() == ["test image 0", "test image 1766"]
    attention = json.loads((folder / "attention.json").read_text())
    assert set(attention["photos"][0]) == {"file", "name", "class", "predicted", "probability"}
    assert len(attention["overlays"]) == 2 * 8
    pictures = {one["file"] for one in (*attention["photos"], *attention["overlays"])}
    assert pictures == {f"attention/{f.name}" for f in (folder / "attention").iterdir()}
    for one in attention["overlays"]:
        with Image.open(folder / one["file"]) as picture:
            assert picture.mode == "RGBA" and picture.size == (8, 8)
        assert one["peak"] >= 1 and ("top" in one) == (one["kind"] == "channel") == (one["stage"] == "act")

    told.clear()
    assert analyse_all([copied], (), TWO, tell=told.append, complain=complaints.append)
    assert told == [f"{folder / name}: there already." for name in names]


def test_it_is_made_again_for_other_photos_another_layer_a_newer_run_or_by_force(copied):
    run, file = TrainedRun(copied), copied / "analysis" / "activation_maps.npz"
    made, there = f"{file}: made.", f"{file}: there already."
    assert analyse(run, "maps", TWO) == made
    assert analyse(run, "maps", TWO) == there
    assert analyse(run, "maps", TWO, force=True) == made
    assert analyse(run, "maps", Options(number=3)) == made
    assert analyse(run, "maps", Options(number=3, layer="layer4.0.conv2")) == there  # that is the standard one
    assert analyse(run, "maps", Options(number=3, layer="layer2")) == made
    assert analyse(run, "maps", Options(number=3, layer="layer2", channels=(1,))) == made
    os.utime(copied / "summary.json", ns=(2**62, 2**62))
    assert analyse(run, "maps", Options(number=3, layer="layer2", channels=(1,))) == made


def test_a_damaged_result_is_made_again(copied):
    run, file = TrainedRun(copied), copied / "analysis" / "filter_distances.json"
    assert analyse(run, "distances", TWO) == f"{file}: made."
    file.write_text(file.read_text()[:-20])
    assert analyse(run, "distances", TWO) == f"{file}: made."


def test_what_fails_leaves_nothing_half_written_and_stops_nothing(copied, monkeypatch):
    def fail(*_):
        raise UserError("This photo is too beautiful.")

    monkeypatch.setattr("afa_jax.analysis.analyses.overlay", fail)
    monkeypatch.setattr("afa_jax.analysis.analyses.activation_maps", fail)
    told, complaints = [], []
    names = ("attention", "maps", "distances")
    assert not analyse_all([copied], names, TWO, tell=told.append, complain=complaints.append)
    assert complaints == [f"{copied}, {name}: This photo is too beautiful." for name in names[:2]]
    assert told == [f"{copied / 'analysis' / 'filter_distances.json'}: made."]
    assert [f.name for f in (copied / "analysis").iterdir()] == ["filter_distances.json"]


def test_fewer_photos_leave_no_pictures_of_the_others(copied):
    run = TrainedRun(copied)
    analyse(run, "attention", TWO)
    analyse(run, "attention", Options(number=1))
    assert len(list((copied / "analysis" / "attention").iterdir())) == 1 + 8
    assert {f.name for f in (copied / "analysis").iterdir()} == {"attention", "attention.json"}


def test_a_folder_that_cannot_be_written(copied):
    (copied / "analysis").touch()
    with pytest.raises(UserError, match=r"copied/analysis cannot be written or read: it is no folder"):
        analyse(TrainedRun(copied), "distances", TWO)


def test_dissection_of_photos_with_masks(copied, tmp_path):
    for name in ("images", "masks"):
        (tmp_path / "masked" / name).mkdir(parents=True)
        Image.new("L", (20, 10), 1).save(tmp_path / "masked" / name / "a.png")
    (tmp_path / "masked" / "concepts.csv").write_text("index,name,category\n1,wall,object\n")
    run, options = TrainedRun(copied), Options(masks=tmp_path / "masked", layer="layer3")
    file = copied / "analysis" / "dissection.json"
    assert analyse(run, "dissection", options) == f"{file}: made."
    told = json.loads(file.read_text())
    assert told["layer"] == "layer3" and set(told["target"]) == set(told["source"]) == {"detectors", "units"}
    assert analyse(run, "dissection", options) == f"{file}: there already."
    (tmp_path / "masked" / "concepts.csv").write_text("index,name,category\n1,floor,object\n")
    assert analyse(run, "dissection", options) == f"{file}: made."
    with pytest.raises(UserError, match="give --masks FOLDER"):
        analyse(run, "dissection", TWO)
    with pytest.raises(UserError, match="digits says nothing of parts"):
        analyse(run, "parts", TWO)
    assert not (copied / "analysis" / "parts.json").exists()


def test_parts_of_both_networks(copied):
    run = TrainedRun(copied)
    parts = np.zeros((1767, 15, 3), np.float32)
    parts[:5, 2] = (3, 4, 1)
    extras = {"parts": parts, "original_size": np.full((1767, 2), 8, np.int32)}
    run.data = replace(run.data, test=replace(run.data.test, extras=extras))
    analyse(run, "parts", Options(layer="layer1"))
    told = json.loads((copied / "analysis" / "parts.json").read_text())
    for name, net in (("target", run.target), ("source", run.start)):
        maps = normalise(by_hand.features(net.variables, run.data.test.images[:5], ("layer1",))[0]["layer1"])
        assert told[name]["parts"]["belly"] == {"mean": pytest.approx(maps[:, 4, 3].mean(), abs=1e-4), "count": 5}
        assert told[name]["mean"] == pytest.approx(told[name]["sum"])
    assert told["layer"] == "layer1"


def test_a_recipe_without_attention_has_none_and_that_is_no_fault(copied, monkeypatch):
    run = TrainedRun(copied)
    monkeypatch.setattr(TrainedRun, "planned", ())
    with pytest.raises(NothingToShow, match="afa has no attention to show"):
        analyse(run, "attention", TWO)
    told = []
    assert analyse_all([copied], ["attention"], TWO, tell=told.append, complain=pytest.fail)
    assert told == [f"{copied}: afa has no attention to show."]


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="There is no finished run in"):
        analyse_all([tmp_path], (), TWO, tell=pytest.fail, complain=pytest.fail)


def test_every_analysis_has_a_file_of_its_own():
    files = [READERS[analysis.name][0] for analysis in analyses.ANALYSES.values()]
    assert len(set(files)) == len(files)
