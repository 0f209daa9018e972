"""What a sweep runs, and where."""

import json
from pathlib import Path

import pytest

from afa_jax.data.catalog import CATALOG
from afa_jax.errors import UserError
from afa_jax.plan import run_identity
from afa_jax.report.figures import KINDS
from afa_jax.settings import to_json
from afa_jax.sweep.jobs import plan, takes_network
from afa_jax.sweep.parameters import parameter_counts
from afa_jax.sweep.presets import GRID, PRESETS, Variant

CONFIGS = Path(__file__).parents[2] / "configs"
OURS = ("quickstart", "methods", "image_folder", "clothing", "identities", "drawn_faces")
DOGS = str(CONFIGS / "stanford_dogs120.py")


def paths(jobs):
    return ["/".join(job.path) for job in jobs]


def test_a_folder_tells_what_differs_from_the_config(tmp_path):
    variants = [Variant("afa"), Variant("afa", {"taps": 8, "eval_every": 5}), Variant("l2", {"data.fold": "1/5"})]
    jobs = plan(DOGS, variants, networks=["resnet101", "mobilenet_v2"], seeds=[0, 3], root=tmp_path)
    assert paths(jobs)[:7] == [
        "afa/seed0",
        "afa/eval_every=5,taps=8/seed0",
        "l2/data.fold=1of5/seed0",
        "mobilenet_v2/afa/seed0",
        "mobilenet_v2/afa/eval_every=5,taps=8/seed0",
        "mobilenet_v2/l2/data.fold=1of5/seed0",
        "afa/seed3",
    ]
    assert len(set(paths(jobs))) == len(jobs) == 12 and jobs[0].workdir == tmp_path / "afa" / "seed0"


def test_a_config_that_wants_the_network_is_told_it(tmp_path):
    (job,) = plan(DOGS, [Variant("afa")], networks=["mobilenet_v2"], root=tmp_path)
    assert job.config == f"{DOGS}:mobilenet_v2" and job.experiment.network == "mobilenet_v2"
    assert [job.experiment.methods[m]["alpha"] for m in ("ast", "act")] == [0.09, 0.04]
    quickstart = str(CONFIGS / "quickstart.py")
    (job,) = plan(f"{DOGS}:resnet101", [Variant("afa")], networks=["mobilenet_v2"], root=tmp_path)
    assert job.config == f"{DOGS}:mobilenet_v2" and job.experiment.methods["ast"]["alpha"] == 0.09
    assert takes_network(DOGS) and not takes_network(quickstart)
    (job,) = plan(quickstart, [Variant("afa")], networks=["resnet18"], root=tmp_path)
    assert "--config.network=resnet18" in job.command and job.experiment.network == "resnet18"


def test_what_is_common_to_all_runs_is_not_in_the_folders_but_in_the_commands(tmp_path):
    (job,) = plan(DOGS, [Variant("l2")], settings={"steps": 60, "methods.ast.alpha": 0.5}, root=tmp_path)
    assert paths([job]) == ["l2/seed0"]
    assert {"--config.steps=60", "--config.recipe=l2", "--config.seed=0", "--config.seeds=1"} <= set(job.command)
    assert (job.experiment.steps, job.experiment.seeds) == (60, 1)


@pytest.mark.parametrize("settings", [{"steps": "many"}, {"stops": 1}])
def test_a_wrong_setting_is_refused_before_anything_runs(settings, tmp_path):
    with pytest.raises(UserError, match="steps"):
        plan(DOGS, [Variant("l2")], settings=settings, root=tmp_path)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_planned_on_every_benchmark(name, tmp_path):
    preset = PRESETS[name]
    benchmarks = [p for p in CONFIGS.glob("*.py") if p.stem not in OURS]
    assert len(benchmarks) == 7
    for config in benchmarks[: 7 if len(preset.variants) < 10 else 1]:
        networks = () if config.stem == "mit_indoors67" else ("resnet101", *preset.networks)
        jobs = plan(str(config), preset.variants, networks=networks, root=tmp_path)
        assert len(jobs) == len(preset.variants) * max(1, len(networks)) == len(set(paths(jobs)))
        assert all(job.experiment.data.name in CATALOG for job in jobs)


def test_what_presets_show_exists():
    assert {name for preset in PRESETS.values() for name in preset.shows} <= {"table", *(kind.name for kind in KINDS)}


def test_presets_name_what_the_papers_say(tmp_path):
    """AFA §5.2 and DELTA §4.2: the rates of Inception-V3, LwF and Soft fine-tuning, and DELTA's grid."""
    table = PRESETS["afa/table3"]
    jobs = plan(DOGS, table.variants, networks=("resnet101", *table.networks), root=tmp_path)
    rates = {(job.experiment.network, job.experiment.recipe): job.experiment.learning_rate for job in jobs}
    assert len(rates) == 21
    for (network, recipe), rate in rates.items():
        low = network.startswith("inception") or recipe in ("lwf", "soft_ft")
        assert rate == (0.001 if low else 0.01), (network, recipe)
    grid = plan(DOGS, PRESETS["delta/fig4"].variants, root=tmp_path)
    assert {(j.experiment.methods["delta"]["alpha"], j.experiment.methods["delta"]["beta"]) for j in grid} == {
        (alpha, beta) for alpha in GRID for beta in GRID
    }
    assert {v.settings["data.per_class"] for v in PRESETS["afa/fig4"].variants} == {10, 20, 30, 40, 50, 60}
    assert {v.settings["taps"] for v in PRESETS["afa/table11"].variants} == {4, 8, 12}
    assert all(v.settings["data.augmentation"] == "improved" for v in PRESETS["delta/table2"].variants)


def finish(job, **changes):
    job.workdir.mkdir(parents=True)
    kept = json.loads(json.dumps(run_identity(job.experiment))) | {"dtype": "float32", **changes}
    (job.workdir / "config.json").write_text(json.dumps(kept))
    summary = {"last_top1": 0.5, "experiment": to_json(job.experiment)}
    (job.workdir / "summary.json").write_text(json.dumps(summary))


def test_finished_is_what_has_the_summary_of_this_very_run(tmp_path):
    (job,) = plan(DOGS, [Variant("l2")], root=tmp_path)
    assert job.result() is None
    finish(job)
    assert job.result()["last_top1"] == 0.5
    (other,) = plan(DOGS, [Variant("l2")], settings={"steps": 60}, root=tmp_path)
    assert other.workdir == job.workdir and other.result() is None
    (job.workdir / "config.json").write_text("{")
    assert job.result() is None


def test_progress_is_the_share_of_the_steps_in_the_journal(tmp_path):
    (job,) = plan(DOGS, [Variant("afa")], settings={"steps": 100}, root=tmp_path)
    assert job.progress() == 0
    job.workdir.mkdir(parents=True)
    journal = job.workdir / "metrics.jsonl"
    journal.write_text('{"stage": "ast", "step": 20, "split": "train"}\n')
    assert job.progress() == 0.2
    journal.write_text(journal.read_text() + '{"stage": "act", "step": 30, "split": "train"}\n{"stage": "a')
    assert job.progress() == 0.8


@pytest.mark.parametrize(
    ("network", "millions"),
    [("resnet101", (44.55, 0.41, 0.20)), ("inception_v3", (27.16, 0.82, 0.41)), ("mobilenet_v2", (3.50, 0.06, 0.03))],
)
def test_parameters_are_those_of_table_6(network, millions):
    assert tuple(round(count / 1e6, 2) for count in parameter_counts(network)) == millions
