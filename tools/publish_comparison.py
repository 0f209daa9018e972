"""Puts the result of a comparison into docs/results and into the page that shows it.

    python tools/publish_comparison.py runs/quickstart/comparison.json
    python tools/publish_comparison.py runs/clothing/8-recipes.json        # of a sweep
    python tools/publish_comparison.py docs/results/data_cpu.json          # a table that tools/benchmark.py has made

The table stands in README.md or a page of docs/ between two comments that name it, and is rebuilt from the copied file
alone.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from afa_jax.comparison import compared
from afa_jax.report import tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


def block(name: str) -> str:
    """The table of docs/results/<name>.json, with where and when it was made."""
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    about = result if "table" in result else [run for run in result["runs"] if "versions" in run][-1]
    source = f"[{name}.json]({os.path.relpath(RESULTS, page(name).parent)}/{name}.json)"
    return f"{table(result)}\n\n<sub>{tables.provenance(about)}. From {source}.</sub>"


def table(result: Mapping[str, Any]) -> str:
    """Of a comparison, or the one that a benchmark has made itself, in Markdown."""
    shown = [_markdown(result["table"])] if "table" in result else map(tables.markdown, compared(result))
    return "\n\n".join([*shown, *_searched(result.get("cross_validation", []))])


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = lines
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _searched(choices: Sequence[Mapping[str, Any]]) -> list[str]:
    """How each value scored in cross-validation, the mean over the folds, by recipe; the chosen one is marked."""
    if not choices:
        return []

    def told(settings: Mapping[str, float]) -> str:
        parts = [(key.rsplit(".", 1)[-1], value) for key, value in settings.items()]
        return ", ".join(f"{name} {value:g}" for name, value in dict.fromkeys(parts))

    def score(point: Mapping[str, Any], chosen: Mapping[str, float]) -> str:
        if len(point["scores"]) < point["folds"]:
            return "failed"
        mean = f"{statistics.fmean(point['scores']):.1f}"
        return f"{mean} ←" if point["settings"] == chosen else mean

    values = list(dict.fromkeys(told(point["settings"]) for choice in choices for point in choice["points"]))
    rows = []
    for choice in choices:
        scores = {told(point["settings"]): score(point, choice["chosen"]) for point in choice["points"]}
        rows.append([choice["name"], *(scores.get(value, "–") for value in values)])
    return [f"Cross-validation, the mean over the folds, ← what was chosen:\n\n{_markdown([['', *values], *rows])}"]


def page(name: str) -> Path:
    """The page that has a place for the table."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [file for file in pages if f"<!-- {name} -->" in file.read_text(encoding="utf-8")]
    if len(found) != 1:
        raise SystemExit(f"{len(found)} pages have a place <!-- {name} --> for the table; there must be one.")
    return found[0]


def insert(text: str, name: str) -> str:
    """`text` with what stands between its two comments replaced by the table."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n{block(name)}\n{end}{rest.split(end)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, help="comparison.json, the file of a sweep, or one in docs/results")
    file = parser.parse_args().comparison
    if not file.is_file():
        print(f"There is no file {file}: run `make quickstart` first.", file=sys.stderr)
        return 2
    file = file.resolve()
    name = file.stem if file.parent == RESULTS.resolve() else file.parent.name
    shown = page(name)
    if file.parent != RESULTS.resolve():
        RESULTS.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, RESULTS / f"{name}.json")
    shown.write_text(insert(shown.read_text(encoding="utf-8"), name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
