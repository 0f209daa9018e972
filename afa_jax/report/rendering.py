"""Tables as text: rows of words, the first of them the head, in Markdown, LaTeX, CSV and for a terminal."""

import csv
import io
from collections.abc import Sequence
from typing import Any

Lines = Sequence[Sequence[str]]

_BEGIN, _END = "\0", "\1"


def bold(words: str) -> str:
    """Words that each format shows in its bold type."""
    return f"{_BEGIN}{words}{_END}"


def _marked(words: str, begin: str, end: str) -> str:
    return words.replace(_BEGIN, begin).replace(_END, end)


def to_markdown(lines: Lines) -> str:
    head, *rows = ([word.replace("|", "\\|") for word in line] for line in lines)
    text = "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
    return _marked(text, "**", "**")


def to_text(lines: Lines) -> str:
    """In columns; what is bold elsewhere has a star."""
    plain = [[_marked(word, "", " *") for word in line] for line in lines]
    first, *others = (max(map(len, column)) for column in zip(*plain, strict=True))
    return "\n".join(
        "  ".join([f"  {line[0]:<{first}}", *(f"{w:>{width}}" for w, width in zip(line[1:], others, strict=True))])
        for line in plain
    )


_LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "–": "--", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {sign: f"\\{sign}" for sign in "_%&#${}"}


def _to_latex(words: str) -> str:
    return _marked("".join(_LATEX.get(sign, sign) for sign in words), r"\textbf{", "}")


def to_latex(lines: Lines, caption: str) -> str:
    """A `table` float; it needs the package booktabs."""
    head, *rows = (" & ".join(map(_to_latex, line)) + r" \\" for line in lines)
    columns = "l" + "r" * (len(lines[0]) - 1)
    parts = [r"\begin{table}", r"\centering", rf"\caption{{{_to_latex(caption)}}}", rf"\begin{{tabular}}{{{columns}}}"]
    parts += [r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(parts)


def to_csv(lines: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()
