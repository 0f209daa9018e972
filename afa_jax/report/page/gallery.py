"""Every figure that the runs allow, drawn, and a sentence about each that they do not."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from afa_jax.errors import UserError
from afa_jax.report.analyses import found
from afa_jax.report.figures import FORMATS, KINDS, Kind, rendered, run_of
from afa_jax.report.runs import Run


@dataclass(frozen=True)
class Drawing:
    """A figure in all formats.

    Attributes:
      name: of its files, without ending.
      about: data set and network, as far as the figure is of one.
      alt: its alternative text.
      files: its bytes by format.
    """

    name: str
    title: str
    about: str
    caption: str
    alt: str
    files: dict[str, bytes]


def draw_all(runs: Sequence[Run]) -> tuple[list[Drawing], list[str]]:
    """The drawings in the order of `KINDS`, and what was left out and why."""
    drawings: list[Drawing] = []
    left_out: list[str] = []
    taken: set[str] = set()
    for kind in KINDS:
        made, problems = _drawn(kind, runs, taken)
        drawings += made
        left_out += problems
    return drawings, left_out


def _drawn(kind: Kind, runs: Sequence[Run], taken: set[str]) -> tuple[list[Drawing], list[str]]:
    """One drawing for each data set and network; where there is none at all, one reason is enough."""
    inputs, problems = found(runs, kind.reads) if kind.reads else (runs, [])
    drawings, reasons = [], []
    for group in kind.split(inputs) or [[]]:
        about = " · ".join(_common([run_of(one) for one in group]))
        try:
            figure = kind.draw(group)
        except UserError as error:
            reasons.append((about, str(error)))
            continue
        title = f"{kind.title}, {about}" if about else kind.title
        files = {suffix: rendered(figure, suffix, title) for suffix in FORMATS}
        name = unique(slug(f"{kind.name}-{about}"), taken)
        drawings.append(Drawing(name, kind.title, about, kind.caption, str(figure.get_label()), files))
    told: dict[str, list[str]] = {}
    for about, reason in reasons:
        told.setdefault(reason, []).append(about)
    if drawings:
        return drawings, [*problems, *(f"{'; '.join(abouts)}: {reason}" for reason, abouts in told.items())]
    return drawings, [*problems, *list(told)[:1]]


def _common(runs: Sequence[Run]) -> list[str]:
    """Data set and network, each only where all runs have the same."""
    datasets = list(dict.fromkeys(run.dataset for run in runs))
    names = list(dict.fromkeys(run.experiment["data"]["name"] for run in runs))
    networks = list(dict.fromkeys(run.network for run in runs))
    return [one[0] for one in (datasets if len(datasets) == 1 else names, networks) if len(one) == 1]


def slug(text: str) -> str:
    """The text as a file name that every system takes."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")[:80] or "unnamed"


def unique(name: str, taken: set[str]) -> str:
    """`name`, with a number where it is taken (capitals apart, for some systems do not tell them); it is taken then."""
    wanted, number = name, 1
    while wanted.lower() in taken:
        number += 1
        wanted = f"{name}-{number}"
    taken.add(wanted.lower())
    return wanted
