"""What the runs say, in plain words."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from afa_jax.report.curves import grouped
from afa_jax.report.page.embedded import task
from afa_jax.report.runs import Run
from afa_jax.report.tables import SIGNIFICANCE, differ, spread


@dataclass(frozen=True)
class Verdict:
    """On the runs of one data set and network.

    Attributes:
      task: their names.
      best: the label with the highest mean.
      score: its mean and deviation, in percent.
      scored: what that is, such as top-1.
      sentence: how sure that is.
      recipes: label, mean, deviation (0 for a single run) and number of runs, the highest mean first.
    """

    task: str
    best: str
    score: str
    scored: str
    sentence: str
    recipes: tuple[tuple[str, float, float, int], ...]


def verdicts(runs: Sequence[Run]) -> list[Verdict]:
    """One for each data set and network, in order of first appearance."""
    return [_verdict(name, group) for name, group in grouped(runs, task).items()]


def _verdict(name: str, runs: Sequence[Run]) -> Verdict:
    values = {label: [run.score for run in group] for label, group in grouped(runs, lambda run: run.label).items()}
    told = next(run.scored + (f" at a FAR of {run.verified[0]['far']:g}" if run.verified else "") for run in runs)
    order = sorted(values, key=lambda label: -statistics.fmean(values[label]))
    best, *others = order
    return Verdict(
        name,
        best,
        spread(values[best]),
        told,
        _sentence(values[best], {label: values[label] for label in others}),
        tuple(
            (label, statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else 0.0, len(v))
            for label, v in ((label, values[label]) for label in order)
        ),
    )


def _sentence(best: Sequence[float], others: dict[str, list[float]]) -> str:
    over = f"Mean over {len(best)} seeds." if len(best) > 1 else "One run only, which says nothing of its noise."
    if not others:
        return f"{over} There is no other recipe to compare it with."
    test = f"(Welch's t-test, p < {SIGNIFICANCE:g})"
    close = [label for label, values in others.items() if not differ(best, values)]
    if not close:
        return f"{over} Better than {_counted(others)} by more than noise explains {test}."
    if len(close) == len(others):
        return f"{over} Not told apart from {_listed(close)}: the difference is within the noise {test}."
    worse = [label for label in others if label not in close]
    return (
        f"{over} Not told apart from {_listed(close)}, within the noise; better than {_listed(worse)} by more than "
        f"that {test}."
    )


def _counted(others: dict[str, list[float]]) -> str:
    return next(iter(others)) if len(others) == 1 else f"each of the {len(others)} others"


def _listed(labels: Sequence[str], most: int = 4, width: int = 80) -> str:
    """`a, b and c`, `a, b, c, d and 3 more`, or their number where they are long."""
    if len(labels) == 1:
        return labels[0]
    shown = labels[:most] if len(labels) > most + 1 else labels[:-1]
    last = labels[-1] if len(shown) == len(labels) - 1 else f"{len(labels) - len(shown)} more"
    text = f"{'; '.join(shown) if any(',' in label for label in labels) else ', '.join(shown)} and {last}"
    return text if len(text) <= width else f"{len(labels)} others"


def facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What was run, on what and when."""
    dates = sorted({run.summary["finished"] for run in runs})
    versions: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, version in run.summary["versions"].items():
            versions.setdefault(name, {})[version] = None
    counts = [f"{len(runs)} finished", _plural(len({run.recipe for run in runs}), "recipe")]
    counts.append(_plural(len({run.seed for run in runs}), "seed"))
    splits = {f"{run.dataset}: {run.summary['train_images']:,} training, {run.summary['test_images']:,} test images"
              for run in runs}  # fmt: skip
    return [
        ("Runs", ", ".join(counts)),
        ("Data", "; ".join(sorted(splits))),
        ("Networks", ", ".join(dict.fromkeys(run.network for run in runs))),
        ("Devices", "; ".join(dict.fromkeys(run.summary["device"] for run in runs))),
        ("Versions", ", ".join(f"{name} {' and '.join(found)}" for name, found in versions.items())),
        ("Finished", dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"),
    ]


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
