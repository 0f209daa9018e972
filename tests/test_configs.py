"""Every config file settles, names what exists, and says in its docstring how it is run."""

import ast
import importlib.util
from pathlib import Path

import pytest

from afa_jax.config import settle
from afa_jax.models.zoo import NETWORKS

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(FOLDER.glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_settles_and_is_documented(path):
    module = load(path)
    config = module.get_config()
    experiment = settle(config)
    assert f"python -m afa_jax.main --config configs/{path.name}" in module.__doc__
    source = experiment.source.weights
    placed = source.startswith(f"{experiment.network}.") and f"`{source}`" in module.__doc__
    assert source == "train" or source in NETWORKS[experiment.network].weights or placed
    body = ast.parse(path.read_text(encoding="utf-8")).body[-1]
    assert body.end_lineno - body.lineno <= 25


def test_the_papers_protocol_is_the_default():
    """AFA §5.2: 9,000 steps of 64, the rate of 0.01 divided by ten after 3,000 of a stage's 4,500."""
    from afa_jax.plan import planned_stages

    config = load(FOLDER / "stanford_dogs120.py").get_config()
    first, second = planned_stages(settle(config))
    assert (config.batch_size, config.momentum) == (64, 0.9)
    assert [(s.name, s.steps, s.drop_at, s.settings["alpha"], s.settings["beta"]) for s in (first, second)] == [
        ("ast", 4500, 3000, 0.1, 0.01),
        ("act", 4500, 3000, 0.15, 0.01),
    ]
    assert (first.learning_rate, second.learning_rate) == pytest.approx((0.01, 0.001))
