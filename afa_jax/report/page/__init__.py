"""The report: one page that needs no network and no other file, with its figures and tables beside it.

The page grows by some 100 to 300 kB a figure (up to ten for each data set and network), 2 kB a run in its table, and
what `embedded` says of curves and attention: four runs with their analyses make 1.1 MB, 500 runs of 100 settings on
four tasks 7 MB.
"""

import base64
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from tempfile import mkdtemp

from afa_jax.errors import UserError
from afa_jax.report import analyses, tables
from afa_jax.report.page import embedded, sections
from afa_jax.report.page.gallery import Drawing, draw_all, slug, unique
from afa_jax.report.page.markup import Html, joined, script_json
from afa_jax.report.runs import Run

INDEX, FIGURES, TABLES = "index.html", "figures", "tables"
GENERATOR = '<meta name="generator" content="afa_jax report">'
_SCRIPTS = ("dom.js", "runs.js", "chart.js", "curves.js", "attention.js", "start.js")
_TITLE_DATASETS = 3
_WRITERS: Mapping[str, Callable[[tables.Table], str]] = {
    "md": tables.markdown,
    "tex": tables.latex,
    "csv": tables.csv,
}


def build(runs: Sequence[Run], left_out: Sequence[str] = ()) -> tuple[dict[str, bytes], list[str]]:
    """The files of the report by their path, and all sentences about what it has not.

    Args:
      left_out: sentences about runs that were not read.

    Raises:
      UserError: there is no run.
    """
    if not runs:
        raise UserError(" ".join(["There is no finished run to report on.", *left_out[:3]]))
    drawings, undrawn = draw_all(runs)
    found, damaged = analyses.found(runs, "attention")
    looked_at, unshown = embedded.attention(found)
    if not found:
        unshown.append("Attention overlays are left out: no run has analysis/attention.json; make it with "
                       "tools/analyse.py.")  # fmt: skip
    sentences = list(dict.fromkeys([*left_out, *undrawn, *damaged, *unshown]))
    shown = _tables(runs)
    page = _page(runs, shown, drawings, looked_at, sentences)
    made = {INDEX: page.encode()}
    for drawing in drawings:
        made |= {f"{FIGURES}/{drawing.name}.{suffix}": content for suffix, content in drawing.files.items()}
    for _, name, texts in shown:
        made |= {f"{TABLES}/{name}.{suffix}": text.encode() for suffix, text in texts.items()}
    return made, sentences


def _tables(runs: Sequence[Run]) -> list[tuple[tables.Table, str, dict[str, str]]]:
    """Each table with its file name and its text by format."""
    taken: set[str] = set()
    return [
        (table, unique(slug(table.title), taken), {suffix: writer(table) for suffix, writer in _WRITERS.items()})
        for table in tables.compare(runs)
    ]


def _page(
    runs: Sequence[Run],
    shown: Sequence[tuple[tables.Table, str, Mapping[str, str]]],
    drawings: Sequence[Drawing],
    looked_at: Mapping[str, object],
    left_out: Sequence[str],
) -> str:
    style, script = _asset("page.css"), "".join(map(_asset, _SCRIPTS))
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    datasets = list(dict.fromkeys(run.dataset for run in runs))
    on = ", ".join(datasets) if len(datasets) <= _TITLE_DATASETS else f"{len(datasets)} data sets"
    parts = {
        "generator": Html(GENERATOR),
        "style": Html(style),
        "style_hash": _hash(style),
        "script": Html(script),
        "script_hash": _hash(script),
        "title": f"Fine-tuning on {on}",
        "summary": sections.summary(runs, left_out),
        "comparison": sections.comparison(shown),
        "filters": sections.filters(runs),
        "runs": sections.runs_table(runs),
        "figures": sections.figures(drawings),
        "count": str(len(runs)),
        "data": script_json({"curves": embedded.curves(runs), "attention": looked_at}),
    }
    # In one pass, so that what is put in is never searched for places itself.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: joined(parts[place[1]]), _asset("page.html"))


def _hash(text: str) -> str:
    """By which the page's own script and style are known to the browser; it runs no other."""
    return f"sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}"


def _asset(name: str) -> str:
    return files(__name__).joinpath("assets", name).read_text(encoding="utf-8")


def write(made: Mapping[str, bytes], folder: Path) -> None:
    """Puts the files into `folder`, all at once: an older report there is replaced when the new one is whole.

    Raises:
      UserError: the folder holds anything but a report, or cannot be written.
    """
    check_place(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            new, old = partial / "new", partial / "old"
            for name, content in made.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_bytes(content)
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                old.rename(folder)
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"The report cannot be written to {folder}: {error.strerror}; choose another with -o."
        ) from error


def check_place(folder: Path) -> None:
    """Holds that nothing is replaced that is no report of ours.

    Raises:
      UserError: the folder holds anything else.
    """
    if not folder.exists():
        return
    advice = "choose a new or empty folder with -o"
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder for the report: {advice}.")
    others = sorted(child.name for child in folder.iterdir() if child.name not in (INDEX, FIGURES, TABLES))
    if others:
        raise UserError(f"{folder} holds other files than a report ({', '.join(others[:3])}): {advice}.")
    index = folder / INDEX
    if any(folder.iterdir()) and not (index.is_file() and GENERATOR in index.read_text("utf-8", errors="replace")):
        raise UserError(f"What {folder} holds is no report of this program: {advice}.")
