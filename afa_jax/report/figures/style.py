"""One look for all figures: colours, lines and marks that the colour-blind can tell apart; PNG and SVG."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from afa_jax.files import whole

# Okabe and Ito's colours; yellow is left out, which is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: Any = {  # its type would be a list of all of matplotlib's settings
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "text.parse_math": False,  # a name with two dollar signs is a name
    "svg.hashsalt": "afa_jax",  # the same figure is the same file
}
FORMATS = ("svg", "png")
_LEGEND_COLUMNS = 4


class Look(NamedTuple):
    """How the line of a label is drawn."""

    colour: str
    line: str
    marker: str

    def options(self, label: str) -> dict[str, Any]:
        """As matplotlib's functions want them."""
        return {"color": self.colour, "linestyle": self.line, "label": label}


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for each label, in order; when the colours are used up, the next style of line begins."""
    return {
        label: Look(COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS) % len(LINES)], MARKERS[i % len(MARKERS)])
        for i, label in enumerate(dict.fromkeys(labels))
    }


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws in the one style, whatever the caller's settings of matplotlib are."""
    return matplotlib.rc_context(STYLE)(draw)


def panels(rows: int, columns: int, *, width: float = 3.6, height: float = 2.7, **options: Any) -> tuple[Figure, Any]:
    """A figure that no window manager knows, and its axes `[rows, columns]`; `width` and `height` of one, in inches."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def mean_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, for the length of an error bar: 0 for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend below all panels, each label once."""
    found = {
        label: handle
        for panel in axes
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }  # fmt: skip
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=min(len(found), _LEGEND_COLUMNS))


def described(figure: Figure, text: str) -> Figure:
    """The figure with its alternative text: what it shows, with its numbers. It is the figure's label."""
    figure.set_label(text)
    return figure


def rendered(figure: Figure, kind: str, title: str = "") -> bytes:
    """The figure as the bytes of an `svg` or a `png`, the same each time; title and alternative text are in it."""
    about = {"Title": title, "Description": str(figure.get_label())}
    about = {key: value for key, value in about.items() if value}
    made = BytesIO()
    with matplotlib.rc_context(STYLE):
        metadata: Any = {**about, "Date": None} if kind == "svg" else about
        figure.savefig(made, format=kind, dpi=150, bbox_inches="tight", metadata=metadata)
    return made.getvalue()


def save(figure: Figure, path: Path, title: str = "") -> None:
    """Writes `path` with the endings `.svg` and `.png`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for kind in FORMATS:
        with whole(path.with_name(f"{path.name}.{kind}")) as partial:
            partial.write_bytes(rendered(figure, kind, title))
