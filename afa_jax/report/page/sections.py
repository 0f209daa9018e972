"""The sections of the page that stand without a script: summary, tables, runs, figures."""

from collections.abc import Mapping, Sequence

from afa_jax.measures import verified
from afa_jax.report.curves import curve
from afa_jax.report.page.gallery import Drawing
from afa_jax.report.page.markup import Html, data_uri, joined, tag
from afa_jax.report.page.summary import Verdict, facts, verdicts
from afa_jax.report.runs import Run
from afa_jax.report.tables import Cell, Table, reported, scored

MEDIA = {
    "svg": "image/svg+xml",
    "png": "image/png",
    "md": "text/markdown;charset=utf-8",
    "tex": "application/x-tex;charset=utf-8",
    "csv": "text/csv;charset=utf-8",
}
_NAMES = {"svg": "SVG", "png": "PNG", "md": "Markdown", "tex": "LaTeX", "csv": "CSV"}


def summary(runs: Sequence[Run], left_out: Sequence[str]) -> Html:
    """The best recipe of each data set and network, and what was run."""
    cards = tag("div", *map(_card, verdicts(runs)), class_="cards")
    listed = tag("dl", *(tag("div", tag("dt", name), tag("dd", text)) for name, text in facts(runs)), class_="facts")
    return joined(cards, listed, _left_out(left_out))


def _card(verdict: Verdict) -> Html:
    return tag(
        "article",
        tag("p", verdict.task, class_="eyebrow"),
        tag("h3", verdict.best),
        tag(
            "p",
            tag("strong", verdict.score, class_="figure"),
            f" % {verdict.scored}, the highest mean",
            class_="headline",
        ),
        tag("p", verdict.sentence),
        _strip(verdict),
        class_="card",
    )


_STRIP_MOST = 8
_STRIP = (100, 18)  # width and height of a row, in the drawing's own units


def _strip(verdict: Verdict) -> Html:
    """Mean and deviation of each recipe as dots with whiskers on one scale."""
    rows = verdict.recipes[:_STRIP_MOST]
    low = min(mean - deviation for _, mean, deviation, _ in rows)
    high = max(mean + deviation for _, mean, deviation, _ in rows)
    width = (high - low) or 1.0

    def at(value: float) -> str:
        return f"{4 + 92 * (value - low) / width:.2f}"

    drawn = [
        tag(
            "tr",
            tag("th", label, scope="row"),
            tag(
                "td",
                tag(
                    "svg",
                    tag("line", x1=at(mean - deviation), x2=at(mean + deviation), y1=9, y2=9),
                    tag("line", class_="dot", x1=at(mean), x2=at(mean), y1=9, y2=9),
                    viewBox=f"0 0 {_STRIP[0]} {_STRIP[1]}",
                    preserveAspectRatio="none",
                    aria_hidden="true",
                    focusable="false",
                ),
                class_="strip",
            ),
            tag("td", f"{mean:.1f} ± {deviation:.1f}" if count > 1 else f"{mean:.1f}", class_="number"),
        )
        for label, mean, deviation, count in rows
    ]
    hidden = len(verdict.recipes) - len(rows)
    more = [tag("p", f"and {hidden} more in the table below", class_="note")] if hidden > 0 else []
    caption = tag("caption", f"{verdict.scored} by recipe, mean ± standard deviation", class_="hidden-text")
    return joined(tag("table", caption, tag("tbody", *drawn), class_="strips"), *more)


def _left_out(sentences: Sequence[str]) -> Html:
    if not sentences:
        return Html("")
    title = tag("summary", f"Left out, and why ({len(sentences)})")
    return tag("details", title, tag("ul", *(tag("li", one) for one in sentences)), class_="left-out")


def comparison(tables: Sequence[tuple[Table, str, Mapping[str, str]]]) -> Html:
    """The tables, each with its file name and its text by format, to download."""
    return joined(*(_table(i, *one) for i, one in enumerate(tables)))


def _table(place: int, table: Table, name: str, texts: Mapping[str, str]) -> Html:
    head = tag(
        "tr", tag("th", "Recipe", scope="col"), *(tag("th", c, scope="col", class_="number") for c in table.columns)
    )
    rows = [tag("tr", tag("th", row.label, scope="row"), *map(_cell, row.cells)) for row in table.rows]
    title = f"table-{place}"
    return tag(
        "div",
        tag("h3", table.title, id=title),
        tag(
            "div",
            tag("table", tag("thead", head), tag("tbody", *rows), aria_labelledby=title),
            class_="scroll",
            tabindex=0,
            role="region",
            aria_labelledby=title,
        ),
        tag("p", " ".join(table.notes), class_="note"),
        _downloads(
            name, table.title, {suffix: data_uri(MEDIA[suffix], text.encode()) for suffix, text in texts.items()}
        ),
        class_="block",
    )


def _cell(cell: Cell | None) -> Html:
    if cell is None:
        return tag("td", "", class_="number")
    shown = tag("strong", cell.text) if cell.best else cell.text
    if cell.published is None:
        return tag("td", shown, class_="number")
    return tag("td", shown, tag("small", f"published {reported(cell.published)}"), class_="number")


def _downloads(name: str, what: str, addresses: Mapping[str, str]) -> Html:
    links = [
        tag(
            "a",
            _NAMES[suffix],
            tag("span", f" of {what}", class_="hidden-text"),
            href=address,
            download=f"{name}.{suffix}",
            class_="button",
        )
        for suffix, address in addresses.items()
    ]
    return tag("p", tag("span", "Download", class_="note"), *links, class_="downloads")


def figures(drawings: Sequence[Drawing]) -> Html:
    """Every figure with its caption and its files."""
    return tag("div", *map(_figure, drawings), class_="figures")


def _figure(drawing: Drawing) -> Html:
    picture = tag("img", src=data_uri(MEDIA["svg"], drawing.files["svg"]), alt=drawing.alt, decoding="async")
    about = [tag("span", drawing.about, class_="eyebrow")] if drawing.about else []
    caption = tag("figcaption", tag("h3", drawing.title), *about, tag("p", drawing.caption))
    # The picture shown is the SVG: the script gives its link the same address, so that the page has it once.
    addresses = {"svg": f"figures/{drawing.name}.svg", "png": data_uri(MEDIA["png"], drawing.files["png"])}
    links = _downloads(drawing.name, f"{drawing.title} {drawing.about}", addresses)
    return tag(
        "figure",
        caption,
        tag("div", picture, class_="paper", role="group", aria_label=f"{drawing.title} {drawing.about}"),
        links,
    )


_COLUMNS = (
    ("Recipe", "text"),
    ("Data set", "text"),
    ("Network", "text"),
    ("Seed", "number"),
    ("", "number"),  # what the runs are judged by
    ("Cross-entropy", "number"),
    ("Steps", "number"),
    ("Images/s", "number"),
    ("Finished", "text"),
)


def runs_table(runs: Sequence[Run]) -> Html:
    """All runs, a table body each, so that a run's command moves along with it when the script sorts."""
    head = [
        tag("th", tag("button", title, type="button"), scope="col", class_=kind, aria_sort="none", data_kind=kind)
        for title, kind in ((title or scored(runs), kind) for title, kind in _COLUMNS)
    ]
    head.append(tag("th", "Command", scope="col"))
    bodies = [_run(i, run) for i, run in enumerate(runs)]
    caption = tag(
        "caption", "All runs; the headers sort, and sort the other way when pressed again", class_="hidden-text"
    )
    return tag("table", caption, tag("thead", tag("tr", *head)), *bodies, id="runs-table")


def filters(runs: Sequence[Run]) -> Html:
    """A chooser each for data set, network and recipe."""
    choices = {
        "dataset": ("Data set", [run.dataset for run in runs]),
        "network": ("Network", [run.network for run in runs]),
        "recipe": ("Recipe", [run.recipe for run in runs]),
    }
    return joined(
        *(
            tag(
                "label",
                title,
                tag(
                    "select",
                    tag("option", "all", value=""),
                    *(tag("option", one) for one in dict.fromkeys(found)),
                    data_filter=name,
                ),
            )
            for name, (title, found) in choices.items()
        )
    )


def _run(place: int, run: Run) -> Html:
    summary = run.summary
    loss = curve(run, "test", "cross_entropy").values
    values: list[tuple[str, float | str]] = [
        (run.label, run.label),
        (run.dataset, run.dataset),
        (run.network, run.network),
        (str(run.seed), run.seed),
        (f"{run.score:.2f}", run.score),
        (f"{loss[0, -1]:.3f}", float(loss[0, -1])) if loss.size else ("–", ""),
        (f"{(steps := sum(s['steps'] for s in summary['stages'])):,}", steps),
        (f"{summary['train_images_per_second']:,.0f}", summary["train_images_per_second"]),
        (summary["finished"], summary["finished"]),
    ]
    cells = [
        tag("th" if i == 0 else "td", text, class_=kind, data_value=value, **({"scope": "row"} if i == 0 else {}))
        for i, ((text, value), (_, kind)) in enumerate(zip(values, _COLUMNS, strict=True))
    ]
    detail = f"command-{place}"
    more = tag("button", "Show", tag("span", f" the command of {run.label}, seed {run.seed}", class_="hidden-text"),
               type="button", class_="more", aria_expanded="false", aria_controls=detail)  # fmt: skip
    command = summary["command"] or "not recorded: the run was not started from a command line"
    copy = [tag("button", "Copy", type="button", class_="copy")] if summary["command"] else []
    rates = [tag("p", line, class_="note") for line in verified(summary["verification"])] if run.verified else []
    rates.append(tag("p", f"{run.folder} · {summary['device']}", class_="note"))
    shown = tag("td", tag("code", command), *copy, *rates,
                colspan=len(_COLUMNS) + 1)  # fmt: skip
    about = {"data_dataset": run.dataset, "data_network": run.network, "data_recipe": run.recipe}
    return tag("tbody", tag("tr", *cells, tag("td", more)), tag("tr", shown, id=detail, class_="detail"), **about)
