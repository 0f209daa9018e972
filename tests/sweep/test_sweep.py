"""The whole: from the command line to tables and figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from afa_jax.comparison import compared
from afa_jax.files import locked
from afa_jax.main import main
from afa_jax.report import tables
from afa_jax.sweep.presets import PRESETS
from tests import processes, tiny

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "sweep.py"


def tool(capsys, *arguments):
    """The exit status of the tool in this process, and what it printed."""
    sys.path.insert(0, str(TOOL.parent))
    try:
        import sweep
    finally:
        sys.path.pop(0)
    status = sweep.main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


@pytest.fixture(autouse=True)
def no_signals(monkeypatch):
    monkeypatch.setattr("afa_jax.training.preemption.listen", lambda *signals: None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--preset", "afa/table44"], "There is no preset 'afa/table44'; did you mean afa/table4"),
        (["--recipes", "l3"], "config.recipe is 'l3', which does not exist; did you mean l2"),
        (["--recipes", "l2,l2"], "l2 is named twice: leave it out"),
        ([], "Give either --preset"),
        (["--preset", "afa/table4", "--recipes", "l2"], "Give either --preset"),
        (["--recipes", "l2", "--config.stops=3"], "There is no setting config.stops"),
        (["--recipes", "l2", "--sedes=3"], "The argument '--sedes=3' means nothing here"),
        (["--recipes", "l2", "--networks", "resnet19"], "config.network is 'resnet19'"),
        (["--recipes", "l2", "--config.data.fold=1/5"], "config.data.fold is a run of cross-validation"),
        (["--recipes", "l2", "--config.source.weights=imagenet1k"], f"leave {tiny.NETWORK} out with --networks"),
        (["--preset", "afa/table11", "--config.taps=4"], "config.taps is what afa-table11 varies: leave it out"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_run(capsys, tmp_path, arguments, sentence):
    config = processes.config(tmp_path / "config")
    status, _, err = tool(capsys, "--config", config, *arguments, "--workdir", tmp_path / "runs")
    assert status == 2 and err.startswith("sweep: ") and err.count("\n") == 1 and sentence in err
    assert not (tmp_path / "runs").exists()


def test_numbers_of_parameters_need_no_run(capsys, tmp_path):
    config = processes.config(tmp_path / "config")
    status, out, _ = tool(
        capsys, "--config", config, "--preset", "afa/table6", "--networks", "mobilenet_v2", "--workdir", tmp_path
    )
    assert status == 0 and "3,504,872" in out
    shown = "| mobilenet_v2 | 3,504,872 | 56,791 | 28,358 | 3.50M, 0.06M, 0.03M |"
    assert shown in (tmp_path / "afa-table6.md").read_text()
    assert {file.suffix for file in tmp_path.glob("afa-table6*")} == {".md", ".tex", ".csv"}


def test_an_unwritable_place_is_a_sentence(capsys, tmp_path):
    config, place = processes.config(tmp_path / "config"), tmp_path / "file"
    place.touch()
    for more in (["--recipes", "l2"], ["--preset", "afa/table6"]):
        status, _, err = tool(capsys, "--config", config, *more, "--workdir", place)
        assert status == 2 and err.count("\n") == 1 and "cannot be written" in err


def test_two_sweeps_in_one_place_and_two_configs_of_one_name_are_refused(capsys, tmp_path):
    config, root = processes.config(tmp_path / "config"), tmp_path / "runs"
    with locked(root / ".sweep.lock", wait=False):
        status, _, err = tool(capsys, "--config", config, "--recipes", "l2", "--workdir", root)
    assert status == 2 and f"Another sweep is at work in {root}" in err
    other = processes.config(tmp_path / "other")
    status, _, err = tool(capsys, "--config", config, other, "--recipes", "l2", "--workdir", root)
    assert status == 2 and "have one name" in err


class Ended:
    """A run that has been, in this process."""

    def __init__(self, command, **others):
        arguments = command[command.index("afa_jax.main") :]
        self.returncode = main(arguments)

    def poll(self):
        return self.returncode

    terminate = kill = None


SMALL = {
    # The settings that make a preset small enough, in place of the papers' sizes; what it varies stays.
    "delta/table2": ["--config.data.resize=10"],
    "delta/fig4": ["--config.convention=normalised"],
    "afa/table12": [
        *("--config.data.name=drawn_faces_infrared", "--config.data.held_out=8", "--config.source.dataset=drawn_faces"),
        *("--config.loss.name=arcface", "--config.fars=1e-2"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_its_table_or_figure(name, capsys, small, monkeypatch):
    """On letters to digits, with few steps; runs that presets have in common are made once."""
    config, root = small
    root = root / "faces" if name == "afa/table12" else root
    monkeypatch.setattr("afa_jax.sweep.work.subprocess.Popen", Ended)
    monkeypatch.setattr("afa_jax.sweep.work.time.sleep", lambda seconds: None)
    more = ["--networks", "resnet10_small"] if PRESETS[name].networks else []
    given = ["--config", config, "--preset", name, *more, *SMALL.get(name, []), "--workdir", root, "--seeds", 1]
    status, _, err = tool(capsys, *given, "--config.eval_every=4")
    assert status == 0, err
    base = name.replace("/", "-")
    if name == "afa/table6":
        assert (root / "afa-table6.md").exists()
    if "table" in PRESETS[name].shows and PRESETS[name].variants:
        (file,) = root.glob(f"{base}-*.csv")  # a line a recipe and data set
        assert len(file.read_text().splitlines()) == 1 + len(PRESETS[name].variants)
    if set(PRESETS[name].shows) - {"table"}:
        assert (root / f"{base}.svg").exists() and (root / f"{base}.png").stat().st_size > 5000


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets")
    changes = {"source.weights": "train", "data.per_class": 3, "log_every": 1}
    return processes.config(folder / "config", "l2", network="resnet10_small", **changes), folder / "runs"


def start(said, *arguments):
    """The tool in a process of its own; its config imports from the tests."""
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT)


def run(folder, *arguments):
    """(exit status, what it said)"""
    with (folder / "said").open("w+") as said:
        (status,) = processes.wait(start(said, *arguments))
        said.seek(0)
        return status, said.read()


@pytest.mark.slow
def test_a_table_from_alpha_chosen_on_the_training_images(tmp_path):
    """Real processes: cross-validation, the chosen alpha in the runs' configs, one recipe that blows up, and again."""
    config, root = processes.config(tmp_path / "config", "l2", seeds=2, steps=4), tmp_path / "runs"
    search = ["--cross_validate", "methods.act.alpha", "--grid", "1e-5,1e-4", "--folds", "2"]
    given = ["--config", config, "--recipes", "l2,ast,act", "--jobs", 2, "--workdir", root, *search]
    status, said = run(tmp_path, *given, "--config.methods.ast.alpha=1e12")
    assert status == 2, said
    assert said.count("sweep: ") == said.count("/seed0 failed: ") + said.count("/seed1 failed: ") == 2
    assert "lower methods.ast.alpha" in said
    for seed in (0, 1):
        choice = json.loads((root / "cross_validation" / f"{tiny.NETWORK}-act-seed{seed}.json").read_text())["chosen"]
        told = f"act/cross_validated=methods.act.alpha,methods.act.alpha={choice['methods.act.alpha']}"
        kept = json.loads((root / told / f"seed{seed}" / "config.json").read_text())
        assert kept["methods"]["act"]["alpha"] == choice["methods.act.alpha"] and kept["data"]["fold"] == ""
    table = (root / f"l2+ast+act-{tiny.NETWORK}.md").read_text()
    assert "| ast | –, 2 failed |" in table and table.count("±") >= 2
    known = json.loads((root / "l2+ast+act.json").read_text())
    (rebuilt,) = compared(known)
    searched = known["cross_validation"]
    assert [c["name"] for c in searched] == [f"runs/{tiny.NETWORK}-act-seed{k}" for k in (0, 1)]
    assert all(len(point["scores"]) == 2 for c in searched for point in c["points"])
    assert f"{tables.markdown(rebuilt).rstrip()}\n" == table
    _, said = run(tmp_path, *given, "--config.methods.ast.alpha=1e12")
    assert "6 runs, 4 of them finished already" in said and "8 runs, 8 of them" in said
    assert (root / f"l2+ast+act-{tiny.NETWORK}.md").read_text() == table


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on_and_its_figure_is_drawn(tmp_path):
    config, root = processes.config(tmp_path / "config", "l2", steps=400, checkpoint_every=20), tmp_path / "runs"
    given = ["--config", config, "--preset", "delta/fig3", "--config.eval_every=100", "--workdir", root]
    with (tmp_path / "said").open("w") as said:
        started = start(said, *given)
    folder = root / "l2_sp" / "schedule=step" / "seed0"
    processes.wait_for_lines(folder, 20, started)
    started.terminate()
    assert started.wait(120) == 75
    assert "the same command goes on" in (tmp_path / "said").read_text()
    assert list((folder / "checkpoints").rglob("*")) and not (folder / "summary.json").exists()
    status, said = run(tmp_path, *given)
    assert status == 0, said
    assert "goes on after step" in (root / "logs" / "l2_sp+schedule=step+seed0.log").read_text()
    assert {file.name for file in root.glob("delta-fig3*")} == {"delta-fig3.json", "delta-fig3.svg", "delta-fig3.png"}
