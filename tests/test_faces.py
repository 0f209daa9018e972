"""People who are not trained on are verified: from drawn faces to a summary, a table and a curve."""

import copy
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from afa_jax import evaluate
from afa_jax.comparison import compared, run_all
from afa_jax.config import settle
from afa_jax.data import catalog
from afa_jax.errors import DivergedError, UserError
from afa_jax.evaluation import verification
from afa_jax.evaluation.verification import directions
from afa_jax.experiment import Run, run, source_network
from afa_jax.measures import verified
from afa_jax.models import weights, zoo
from afa_jax.plan import data_request, run_identity, source_request
from afa_jax.report import tables
from afa_jax.report.figures.verification import roc
from afa_jax.report.page import sections
from afa_jax.report.runs import find_runs
from afa_jax.training.journal import read_metrics
from afa_jax.transfer.recipes import RECIPES
from tests import processes, tiny

FACES = {
    "data.name": "drawn_faces_infrared",
    "data.image_size": 16,
    "data.resize": 16,
    "data.held_out": 8,
    "source.dataset": "drawn_faces",
    "source.steps": 4,
    "loss.name": "arcface",
    "loss.scale": 16.0,
    "loss.margin": 0.2,
    "fars": "1e-2,1e-3",
    "steps": 10,
}


def config(recipe, **changes):
    return tiny.config(recipe, **{**FACES, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Source training by visible light, then fine-tuning in near infrared, two seeds each."""
    root = tmp_path_factory.mktemp("faces") / "runs"
    run_all(settle(config("l2, afa", seeds=2)), root)
    return root


def summary(folder, recipe="afa", seed=0):
    return json.loads((folder / recipe / f"seed{seed}" / "summary.json").read_text())


def test_the_summary_is_of_the_saved_network(folder):
    """TAR by brute force over all pairs of the held-out people, from embeddings taken one image at a time."""
    found, e = summary(folder)["verification"], settle(config("afa"))
    data = catalog.load(e.data.name, data_request(e))
    assert len(data.held_out) == 8 and len(data.test) == 96 and set(data.held_out).isdisjoint(data.classes)
    variables = weights.load(tiny.NETWORK, folder / "afa" / "seed0" / "model")
    module, preprocess = zoo.create(tiny.NETWORK, len(data.classes)), Run(e, folder / "none").preprocess
    look = jax.jit(lambda images: zoo.forward(module, variables, images, taps=("fc:input",)).features["fc:input"])
    images = preprocess.test(np.stack([data.test.images[i] for i in range(96)]))
    made = directions(np.asarray(look(images) + look(images[:, :, ::-1])))
    similar = (made @ made.T)[np.triu_indices(96, 1)]
    genuine = (data.test.labels[:, None] == data.test.labels)[np.triu_indices(96, 1)]
    assert found["pairs"] == {"genuine": 8 * 12 * 11 // 2, "impostor": 96 * 95 // 2 - 8 * 12 * 11 // 2}
    impostors = np.sort(similar[~genuine])[::-1]
    for one, far in zip(found["tar_at_far"], (1e-2, 1e-3), strict=True):
        threshold = impostors[int(far * len(impostors))]
        assert one["far"] == far and one["low"] <= one["tar"] <= one["high"]
        np.testing.assert_allclose(one["tar"], (similar[genuine] > threshold).mean(), atol=2 / genuine.sum())


def test_what_is_judged_is_in_journal_and_summary(folder):
    for recipe, stages in (("l2", ["l2"]), ("afa", ["ast", "act"])):
        said = summary(folder, recipe)
        assert [stage["name"] for stage in said["stages"]] == stages
        tests = [r for r in read_metrics(folder / recipe / "seed0" / "metrics.jsonl") if r["split"] == "test"]
        first, second = said["verification"]["tar_at_far"]
        assert {key: tests[-1][key] for key in tests[-1] if key.startswith("tar")} == {
            "tar": first["tar"],
            "tar@0.001": second["tar"],
        }
        assert said["last_tar"] == said["stages"][-1]["last_tar"] == tests[-1]["tar"]
        assert "last_top1" not in said and not any("top1" in test or "cross_entropy" in test for test in tests)


def test_seeds_hold_out_other_people(folder):
    chosen = []
    for seed in (0, 1):
        e = settle(config("l2", seed=seed))
        chosen.append(set(catalog.load(e.data.name, data_request(e)).held_out))
    assert chosen[0] != chosen[1]


def test_the_table_has_a_column_a_rate_and_the_curve_is_drawn(folder):
    runs, problems = find_runs([folder])
    assert not problems and len(runs) == 4
    (table,) = tables.compare(runs)
    assert table.title == f"TAR (%) of {tiny.NETWORK}"
    assert table.columns == tuple(f"drawn_faces_infrared_3, TAR at FAR {far}" for far in ("0.01", "0.001"))
    assert [row.label for row in table.rows] == ["l2", "afa"]
    afa = [100 * summary(folder, "afa", seed)["last_tar"] for seed in (0, 1)]
    assert list(table.rows[1].cells[0].values) == afa
    assert "Impostor pairs that are accepted on drawn_faces_infrared_3" in table.notes[-1]
    (again,) = compared(json.loads((folder / "comparison.json").read_text()))
    assert again.rows == table.rows and again.notes == table.notes
    assert "% at 0.001" in roc(runs).get_label()


def test_runs_of_other_rates_or_measures_share_a_table(folder):
    runs, _ = find_runs([folder])
    found = copy.deepcopy(dict(runs[0].summary))
    found["verification"]["tar_at_far"][1] |= {"far": 1e-4, "tar": 0.25}
    plain = {key: value for key, value in found.items() if key not in ("last_tar", "verification")}
    mixed = [*runs, replace(runs[0], summary=found), replace(runs[0], summary={**plain, "last_top1": 0.5})]
    (table,) = tables.compare(mixed)
    name = "drawn_faces_infrared_3"
    assert table.columns == (*(f"{name}, TAR at FAR {far}" for far in ("0.01", "0.001", "0.0001")), name)
    assert table.title == f"TAR and top-1 (%) of {tiny.NETWORK}"
    l2, afa = table.rows
    assert [len(cell.values) for cell in l2.cells] == [3, 2, 1, 1] and afa.cells[2:] == (None, None)
    assert l2.cells[2].values == (25.0,) and l2.cells[3].values == (50.0,)


def test_the_page_and_the_run_say_rates_with_their_intervals(folder, tmp_path):
    runs, _ = find_runs([folder])
    lines = verified(runs[0].summary["verification"])
    one = runs[0].summary["verification"]["tar_at_far"][0]
    assert lines[0] == (
        f"TAR {100 * one['tar']:.1f} % (95 % interval {100 * one['low']:.1f} to {100 * one['high']:.1f}) of 528 "
        f"genuine pairs at a FAR of 0.01: {one['impostors']} of 4,032 impostor pairs."
    )
    page = str(sections.runs_table(runs))
    assert lines[0] in page and "TAR (%)" in page and "op-1" not in page


def test_a_finished_run_says_its_rate(folder, capsys):
    run(settle(config("afa")), folder / "afa" / "seed0")
    assert "finished already, TAR" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in ("l2", "afa")])
def test_other_recipes_run_by_angle(recipe, folder, tmp_path):
    summary = run(settle(config(recipe)), tmp_path / "run")
    assert 0 <= summary["last_tar"] <= 1


@pytest.mark.slow
def test_softmax_and_folds_of_people(folder, tmp_path):
    found = run(settle(config("l2", **{"loss.name": "softmax", "data.fold": "1/4", "fars": "0.01"})), tmp_path / "run")
    assert found["verification"]["identities"] == (64 - 8) // 4
    assert found["test_images"] == 14 * 3  # of the labelled images, three a person


def test_the_parts_of_a_cross_validation_state_what_they_can(tmp_path):
    """Parts of 5 to 6 people, three images a person, have 90 impostor pairs or more."""
    parts = {"data.fold": "2/10", "fars": "2e-2,1e-3"}
    assert Run(settle(config("l2", **parts)), tmp_path / "run").rates == (0.02,)
    with pytest.raises(UserError, match="cross-validate in fewer parts, or name a larger rate first"):
        Run(settle(config("l2", **{**parts, "fars": "1e-3,2e-2"})), tmp_path / "run")


def test_a_source_is_verified_at_what_its_own_people_can_state(folder):
    """Eight people of twelve images have 4,032 impostor pairs, whatever the target's rates."""
    e = settle(config("afa", fars="0.5"))
    found = json.loads((source_network(e).parent / "summary.json").read_text())
    assert [one["far"] for one in found["verification"]["tar_at_far"]] == [0.01, 0.001]
    assert source_network(e) == source_network(settle(config("afa")))


def test_soft_fine_tuning_sees_the_people_that_the_source_was_trained_on(folder):
    e = settle(config("soft_ft", seed=1))
    trained = weights.describe(source_network(e))
    assert tuple(trained["classes"]) == catalog.load("drawn_faces", source_request(e)).classes
    assert trained["loss"] == "arcface"


def test_a_head_is_read_as_it_was_trained(tmp_path):
    """A softmax's classification layer has no meaning by angle, and is refused where it is read."""
    source = zoo.initialise(zoo.create(tiny.NETWORK, 9), jax.random.key(0), 16)
    weights.save(tmp_path / "source", tiny.NETWORK, source, loss="softmax")
    changes = {"source.weights": str(tmp_path / "source")}
    start = {recipe: Run(settle(config(recipe, **changes)), tmp_path / "run").start for recipe in ("lwf", "afa")}
    with pytest.raises(UserError, match="trained by softmax and says nothing by arcface"):
        start["lwf"]()
    assert start["afa"]()[2] is not None


def test_one_spoilt_run_does_not_stop_the_others(tmp_path, monkeypatch):
    honest = verification.embed
    seen = []

    def embed(*arguments):
        made = honest(*arguments)
        seen.append(0)
        return verification.directions(made * (len(seen) > 1))

    monkeypatch.setattr(verification, "embed", embed)
    with pytest.raises(DivergedError, match=r"1 of 2 runs diverged: l2, seed 0: The embedding of .* is zero"):
        run_all(settle(config("l2", seeds=2, steps=2)), tmp_path / "runs")
    assert summary(tmp_path / "runs", "l2", 1)["last_tar"] >= 0


def test_ten_crops_are_refused(tmp_path):
    with pytest.raises(UserError, match="not by ten crops"):
        Run(settle(config("afa", **{"data.augmentation": "improved"})), tmp_path / "run")


def test_too_few_pairs_are_told_before_anything_is_trained(tmp_path):
    with pytest.raises(UserError, match=r"smallest FAR that can be stated is 0\.00025"):
        run(settle(config("afa", fars="1e-2,1e-5")), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("fars", ["", "0.1,", "0", "1", "0.1,0.1", "low"])
def test_wrong_rates(fars):
    with pytest.raises(UserError, match="must be different rates between 0 and 1"):
        settle(config("afa", fars=fars))


@pytest.mark.parametrize(("key", "value"), [("loss.name", "arc"), ("loss.scale", 0.0), ("loss.margin", -0.1)])
def test_a_wrong_loss(key, value):
    with pytest.raises(UserError, match=f"config.{key} is"):
        settle(config("afa", **{key: value}))


def test_a_finished_network_is_verified_again_at_other_rates(folder, tmp_path, capsys):
    output, one = tmp_path / "said.json", folder / "afa" / "seed0"
    assert evaluate.main([str(one), "-o", str(output), "--config.fars=1e-2,0.3"]) == 0
    found, run = json.loads(output.read_text())["verification"], summary(folder)["verification"]
    assert [rate["far"] for rate in found["tar_at_far"]] == [0.01, 0.3] and found["pairs"] == run["pairs"]
    assert found["tar_at_far"][0]["tar"] == pytest.approx(run["tar_at_far"][0]["tar"], abs=2 / 528)
    assert "drawn_faces_infrared: TAR" in capsys.readouterr().out
    assert evaluate.main([str(one), "--split=train"]) == 0
    assert "top-1" in capsys.readouterr().out
    assert evaluate.main([str(one), "--split=all"]) == 2
    assert "give one split" in capsys.readouterr().err


def test_what_does_not_matter_is_no_part_of_the_run():
    digits = settle(tiny.config())
    assert "loss" not in run_identity(digits) and "fars" not in run_identity(digits)
    assert "held_out" not in run_identity(digits)["data"]
    faces = run_identity(settle(config("afa")))
    assert faces["loss"]["name"] == "arcface" and faces["fars"] == "1e-2,1e-3" and faces["data"]["held_out"] == 8


def test_recipes_that_need_a_head_refuse_a_file_without_one(tmp_path):
    """Published face networks come without their classification layer; what only aligns features takes them."""
    source = zoo.initialise(zoo.create("mobilefacenet", 0), jax.random.key(0), 112)
    weights.save(tmp_path / "source", "mobilefacenet", source)
    changes = {"network": "mobilefacenet", "source.weights": str(tmp_path / "source")}
    changes |= {"data.image_size": 112, "data.resize": 112}
    start = {recipe: Run(settle(config(recipe, **changes)), tmp_path / "run").start for recipe in ("lwf", "afa")}
    with pytest.raises(UserError, match=r"lwf needs the source network's classification layer, and .* has none"):
        start["lwf"]()
    target, _, found = start["afa"]()
    assert target["params"]["head"]["kernel"].shape == (128, 56) and found["params"]["head"]["kernel"].shape == (128, 0)


@pytest.mark.slow
def test_two_hosts_verify_as_one(folder, tmp_path):
    changes = {**FACES, "eval_batch_size": 40}
    file = processes.config(tmp_path / "config", "l2", **changes)
    assert processes.wait(*processes.start_hosts(2, file, tmp_path / "run")) == [0, 0]
    two, one = (json.loads((f / "summary.json").read_text()) for f in (tmp_path / "run", folder / "l2" / "seed0"))
    assert two["verification"]["pairs"] == one["verification"]["pairs"]
    assert two["last_tar"] == pytest.approx(one["last_tar"], abs=0.01)
