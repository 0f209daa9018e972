"""What the README shows is what the repository holds: the example runs, the table is the file's."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_ind

from afa_jax.main import parse
from afa_jax.transfer.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOUR = ("delta", "dfa", "ast", "afa")
sys.path.insert(0, str(ROOT / "tools"))


@pytest.mark.slow
def test_the_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["loss"] > 0
    assert next(f.shape for f in names["features"].values()) == (2, 16, 16, 64)
    assert len([line for line in code.splitlines() if line]) <= 16


def test_the_table_is_rebuilt_from_the_repository():
    import publish_comparison

    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    names = [name for page in pages for name in re.findall(r"<!-- (\w+) -->", page.read_text(encoding="utf-8"))]
    assert {"quickstart", "methods", "drawn_faces", "step_cpu"} <= set(names)
    for name in names:
        text = publish_comparison.page(name).read_text(encoding="utf-8")
        assert publish_comparison.insert(text, name) == text
    runs = json.loads((ROOT / "docs" / "results" / "quickstart.json").read_text())["runs"]
    assert {(run["recipe"], run["seed"]) for run in runs} == {
        (recipe, seed) for recipe in ("scratch", "l2", "dfa", "ast", "act", "afa") for seed in range(3)
    }
    # Chance is 10 %; and with a source network every recipe does better than without.
    means = {r: sum(run["last_top1"] for run in runs if run["recipe"] == r) / 3 for r in ("scratch", "l2", "afa")}
    assert means["afa"] > 0.8 and min(means["l2"], means["afa"]) > means["scratch"]


def test_what_the_evidence_says_is_in_its_file():
    runs = json.loads((ROOT / "docs" / "results" / "clothing.json").read_text())["runs"]
    top1 = {r: np.array([run["last_top1"] for run in runs if run["recipe"] == r]) * 100 for r in ("l2", "l2_fe", *FOUR)}

    def p(one, other):
        return ttest_ind(top1[one], top1[other], equal_var=False).pvalue

    assert all(12 <= round(top1[name].mean() - top1["l2"].mean(), 1) < 13.5 and p(name, "l2") < 0.004 for name in FOUR)
    assert all(4 < top1[name].mean() - top1["l2_fe"].mean() < 6 for name in FOUR)
    assert [round(p(name, "l2_fe"), 3) for name in FOUR] == [0.002, 0.009, 0.042, 0.133]
    assert max(top1[name].mean() for name in FOUR) - min(top1[name].mean() for name in FOUR) < 1.25
    behind = np.array([run["last_top1"] for run in runs if run["recipe"] == "afa"]) * 100 - top1["ast"]
    assert [round(float(x), 1) for x in (behind.min(), behind.max(), behind.mean())] == [-7.3, 2.4, -1.2]


def test_a_search_is_shown_by_value_with_its_choice():
    import publish_comparison

    def point(scores, **settings):
        return {"settings": {f"{key}.alpha": value for key, value in settings.items()}, "scores": scores, "folds": 2}

    afa = [point([40.0, 41.0], ast=0.1, act=0.1), point([50.0, 53.0], ast=1.0, act=1.0)]
    act = [point([60.0, 60.0], act=0.1), point([70.0], act=1.0), point([10.0, 20.0], act=10.0)]
    table = publish_comparison.table(
        {
            "table": [["what"], ["this"]],
            "cross_validation": [
                {"name": "net-afa-seed0", "chosen": afa[1]["settings"], "points": afa},
                {"name": "net-act-seed0", "chosen": act[0]["settings"], "points": act},
            ],
        }
    )
    assert table.splitlines()[-4] == "|  | alpha 0.1 | alpha 1 | alpha 10 |"
    assert table.splitlines()[-2:] == [
        "| net-afa-seed0 | 40.5 | 51.5 ← | – |",
        "| net-act-seed0 | 60.0 ← | failed | 15.0 |",
    ]


def test_every_recipe_is_explained():
    table = README[README.index("| recipe | what is added") :]
    for name in RECIPES:
        assert f"`{name}`" in table[: table.index("\n\n")]


def test_the_table_of_all_methods_has_all_of_them():
    runs = json.loads((ROOT / "docs" / "results" / "methods.json").read_text())
    assert {run["recipe"] for run in runs["runs"]} == set(RECIPES) and not any(runs["failed"].values())
    assert len(runs["runs"]) == 3 * len(RECIPES)


def test_the_commands_parse():
    text = README.replace("\\\n", " ")
    commands = re.findall(r"python -m afa_jax\.main (--config [^#\n]*)", text)
    assert len(commands) >= 2
    for command in commands:
        parse(["main", *command.split()])


@pytest.mark.parametrize("target", ["quickstart", "test", "lint", "results"])
def test_the_makefile_has_what_the_texts_name(target):
    ended = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_linked_files_exist():
    for link in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (ROOT / link).exists(), link
