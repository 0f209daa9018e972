"""The command line: what a user may do wrong ends with one sentence and status 2, and leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from afa_jax.main import main
from afa_jax.models import torch_file
from tests.models import parity_cases as cases
from tests.models.legacy_files import write_stream

ROOT = Path(__file__).parents[1]
TINY = """
from tests import tiny

def get_config():
    return tiny.config({recipe!r}, network="resnet10_small")
"""


WRONG_KEY = "There is no setting config.sedd; did you mean seed"


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(TINY.format(recipe="afa"))
    return file


def refuse(capsys, *arguments):
    """Runs the command line, which must end with status 2, and gives its one sentence."""
    assert main(["main", *map(str, arguments)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("afa_jax: ") and err.count("\n") == 1 and err.rstrip()[-1] in ".?"
    return err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config.sed=1"], "There is no setting config.sed; did you mean seed"),
        (["--config.alpha=1"], "methods.ast.alpha"),
        (["--config.seed=x"], "config.seed=x"),
        (["--config.recipe=af"], "did you mean afa"),
        (["--config.data.per_class=500"], "set it to at most 173"),
        (["--config.tap_layers=layer1.0.con2"], "no layer 'layer1.0.con2' to tap; did you mean layer1.0.conv"),
        (["--config.tap_layers=layer1.0.conv2,fc"], "'fc' of resnet10_small gives no feature map"),
        (["--config.source.weights=/nowhere/net.safetensors"], "There are no weights /nowhere/net.safetensors"),
        (["--confg=x"], "Unknown command line flag 'confg'. Did you mean: config"),
        (["--config.recipe=l2", "--config.tap_layers=nonsense"], "no layer 'nonsense' to tap"),
        (["--config.tap_layers=,", "--config.taps=7"], "config.taps is '7'"),
        (["--config.batch_size=100000000000"], "it must be between 1 and"),
        (["--config.tap_layers=layer1.0.conv2,layer1.0.conv2"], "names a layer twice"),
        (["--config.schedule=exponential", "--config.drop=0"], "set it above 0"),
        (["--config.schedule=cosine"], "config.schedule is 'cosine'"),
        (["--config.methods.act.alpha=-1"], "config.methods.act.alpha is -1.0; it must be at least 0"),
        (["--config.methods.act.alpha=nan"], "config.methods.act.alpha is nan"),
        (
            ["--config.recipe=lwf", "--config.methods.lwf.temperature=0"],
            "lwf.temperature is 0.0; it must be at",
        ),
        (
            ["--config.recipe=bss", "--config.methods.bss.smallest=0"],
            "bss.smallest is 0; it must be at least 1",
        ),
        (["--config.recipe=delta", "--config.methods.delta.channel_weights=/no.json"], "There is no file /no.json"),
        (["--flagfile=/nowhere"], "/nowhere"),
        (["stray"], "The argument 'stray' means nothing here"),
    ],
)
def test_wrong_settings(config, tmp_path, capsys, arguments, sentence):
    workdir = tmp_path / "run"
    assert sentence in refuse(capsys, "--config", config, "--workdir", workdir, *arguments)
    left = [f.name for f in workdir.iterdir()] if workdir.exists() else []
    assert left in ([], [".lock"])  # so that the mended command may use the same workdir


def cut(path):
    torch_file.write(path, cases.state("resnet10_small"))
    path.write_bytes(path.read_bytes()[:-999])


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: torch_file.write(path, cases.state("resnet18")), "it looks like resnet18"),
        (lambda path: torch_file.write(path, {"fc.weight": np.zeros((5, 128), np.float32)}), "61 missing"),
        (lambda path: path.write_text("<html>Not found</html>"), "is a web page"),
        (cut, "is no whole PyTorch file"),
        (lambda path: path.write_bytes(b"cos\nsystem\n(S'true'\ntR."), "asks for os.system"),
        (lambda path: write_stream(path, {}, python2=True), "holds no state_dict"),
    ],
)
def test_wrong_files_of_weights(config, tmp_path, capsys, write, sentence):
    file, workdir = tmp_path / "net.pth", tmp_path / "run"
    write(file)
    told = refuse(capsys, "--config", config, "--workdir", workdir, f"--config.source.weights={file}")
    assert sentence in told and str(file) in told
    assert sorted(path.name for path in workdir.iterdir()) == [".lock"]


def test_no_network(config, tmp_path, capsys, monkeypatch):
    """The published name, with a server that is not there: no half-written file, and what to do without one."""
    monkeypatch.setenv("AFA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AFA_JAX_MIRROR", "http://127.0.0.1:1")
    settings = ("--config.network=mobilenet_v2", "--config.source.weights=imagenet1k_v1", "--config.data.image_size=32")
    told = refuse(capsys, "--config", config, "--workdir", tmp_path / "run", *settings, "--config.data.resize=32")
    assert "127.0.0.1:1/mobilenet_v2-b0353104.pth cannot be fetched" in told and "place it in" in told
    assert not [path for path in (tmp_path / "cache" / "weights").iterdir() if not path.name.startswith(".")]


def test_no_config_and_wrong_files(tmp_path, capsys):
    assert "add --config" in refuse(capsys)
    assert "There is no config file" in refuse(capsys, "--config", tmp_path / "none.py")
    wrong = tmp_path / "wrong.py"
    for text, sentence in (
        ("x = 1", "get_config"),
        ("def get_config(:", "invalid syntax"),
        ("import nothing_of_that_name", "nothing_of_that_name"),
        ("from afa_jax.config import default\ndef get_config():\n c = default()\n c.sedd = 1\n return c", WRONG_KEY),
        (
            "from afa_jax.config import default\ndef get_config():\n c = default()\n c.steps = 'x'\n return c",
            "override field 'steps'",
        ),
    ):
        wrong.write_text(text)
        assert sentence in refuse(capsys, "--config", wrong)


def test_a_workdir_that_cannot_be_written(config, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "cannot be written" in refuse(capsys, "--config", config, "--workdir", tmp_path / "file" / "x")


def test_a_comparison_and_a_single_run_do_not_share_a_workdir(config, tmp_path, capsys):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text("{}")
    assert "holds a single run" in refuse(capsys, "--config", config, "--workdir", workdir, "--config.seeds=2")
    (workdir / "config.json").unlink()
    (workdir / "afa").mkdir()
    assert "holds other files (afa)" in refuse(capsys, "--config", config, "--workdir", workdir)


def test_help_lists_every_setting(capsys):
    assert main(["main", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--workdir" in shown and "--config.methods.ast.alpha=0.1" in shown


def test_status_2_reaches_the_shell():
    command = [sys.executable, "-m", "afa_jax.main", "--config", "configs/quickstart.py", "--config.sed=1"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert ended.stderr == "afa_jax: There is no setting config.sed; did you mean seed, seeds, schedule, steps?\n"
    assert ended.stdout == ""
