"""The report tool as it is typed: what it writes, what it says, and what it refuses."""

import sys
from pathlib import Path

import pytest

from tests.report import made

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from report import main


@pytest.fixture
def runs(tmp_path):
    for run in (made.run("l2", 0, 0.8, folder=tmp_path / "runs"), made.run("afa", 0, 0.9, folder=tmp_path / "runs")):
        made.write(run)
    return tmp_path / "runs"


def test_page_figures_and_tables(runs, tmp_path, capsys):
    out = tmp_path / "new" / "report"
    assert main([str(runs), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{out}/index.html: 2 runs, ") and "report: " in said.err
    assert {"index.html", "figures", "tables"} == {child.name for child in out.iterdir()}
    assert (out / "figures" / "curves-digits_5-resnet18.svg").is_file()
    assert (out / "figures" / "curves-digits_5-resnet18.png").is_file()
    assert {file.suffix for file in (out / "tables").iterdir()} == {".md", ".tex", ".csv"}
    assert "afa" in (out / "index.html").read_text(encoding="utf-8")


def test_a_run_that_is_damaged_or_unfinished_is_told_and_the_rest_made(runs, tmp_path, capsys):
    next(runs.rglob("summary.json")).write_text("{")
    third = made.write(made.run("dfa", 0, folder=runs))
    (third / "summary.json").unlink()
    assert main([str(runs), "-o", str(tmp_path / "report")]) == 0
    said = capsys.readouterr()
    assert "1 runs" in said.out
    told = [line for line in said.err.splitlines() if str(runs) in line]
    assert len(told) == 2 and "is damaged" in said.err and "is not finished" in said.err
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert f"{third} is not finished" in page


@pytest.mark.parametrize("make", [lambda folder: folder.mkdir(), lambda folder: None])
def test_no_finished_run_is_a_sentence_and_nothing_written(make, tmp_path, capsys):
    make(tmp_path / "runs")
    assert main([str(tmp_path / "runs"), "-o", str(tmp_path / "report")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("report: There is no ") and said.err.count("\n") == 1 and said.out == ""
    assert not (tmp_path / "report").exists()


def test_a_folder_with_other_files_is_left_alone(runs, tmp_path, capsys):
    assert main([str(runs), "-o", str(runs)]) == 2
    assert "holds other files than a report" in capsys.readouterr().err
    assert not (runs / "index.html").exists()
