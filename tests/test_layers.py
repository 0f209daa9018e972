"""The import rule: downwards only; `transfer`, `models` and `data` know nothing of each other."""

import ast
from pathlib import Path

import pytest

import afa_jax

ROOT = Path(afa_jax.__file__).parent

# Who may be imported by whom: a module may import those of a lower rank, and of its own part of the house.
RANK = {
    **dict.fromkeys(
        (
            *("errors", "types", "files", "measures", "memory", "registry"),
            *("initializers", "trees", "batch_axis", "__init__"),
        ),
        0,
    ),
    **dict.fromkeys(("compilation", "download", "hosts"), 0.5),
    **dict.fromkeys(("transfer", "models", "data", "report", "provenance"), 1),
    "training": 2,
    "evaluation": 3,
    "settings": 3.5,
    "config": 4,
    "command_line": 5,
    "plan": 5,
    **dict.fromkeys(("experiment", "inference"), 6),
    **dict.fromkeys(("analysis", "comparison", "api"), 7),
    **dict.fromkeys(("main", "predict", "evaluate", "export"), 8),
    "sweep": 9,
}
FILES = sorted(ROOT.rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def runs_up_or_across(own, name):
    """Whether the part `own` of the house must not import `name`."""
    if not name.startswith("afa_jax."):
        return False
    other = name.split(".")[1]
    other = other if other in RANK else "__init__"  # `from afa_jax import __version__`
    return other != own and RANK[other] >= RANK[own]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path):
    own = part(path)
    assert own in RANK, f"{own} has no place in the order of imports"
    wrong = [name for name in imports(path) if runs_up_or_across(own, name)]
    assert not wrong, f"{path} imports {wrong}"


def test_the_rule_notices():
    assert runs_up_or_across("transfer", "afa_jax.models.zoo.forward")  # across
    assert runs_up_or_across("training", "afa_jax.experiment.run")  # up
    assert not runs_up_or_across("training", "afa_jax.transfer.losses.direct_alignment")
    assert not runs_up_or_across("models", "afa_jax.models.layers.conv")
    assert "afa_jax.experiment.run" in set(imports(ROOT / "main.py"))


@pytest.mark.parametrize("path", [p for p in FILES if part(p) == "report"], ids=lambda p: p.name)
def test_report_reads_files_only(path):
    assert not any(name.split(".")[0] in ("jax", "flax", "orbax") for name in imports(path))


def test_no_house_of_one_room():
    assert not list(ROOT.rglob("utils.py"))
    for path in FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, f"{path} is more than one thing"
