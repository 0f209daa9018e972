"""Figures from the files that runs leave: pure functions of runs, or of what was found in their analysis files.

Each returns a figure whose label is its alternative text, and raises a `UserError` with the reason where its input is
missing. `KINDS` has those of the report with their titles.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from afa_jax.report.analyses import Found
from afa_jax.report.figures.alpha import alpha_range, working
from afa_jax.report.figures.analysis import detectors, filter_distances, generalisation_gap, parts
from afa_jax.report.figures.maps import activation_maps, alike
from afa_jax.report.figures.settings import alpha_beta, attentive_modules, images_a_class, parameters
from afa_jax.report.figures.style import COLOURS, FORMATS, rendered, save
from afa_jax.report.figures.training import curves, schedules
from afa_jax.report.figures.verification import roc
from afa_jax.report.runs import Run

__all__ = ["COLOURS", "FORMATS", "KINDS", "Kind", "alpha_range", "rendered", "save", "working"]

Input = Run | Found


@dataclass(frozen=True)
class Kind:
    """A figure of the report.

    Attributes:
      name: of its file.
      caption: how to read it, and the papers' figure or table that it answers to.
      draw: from runs, or from `Found` where it `reads` an analysis; raises `UserError` where its input is missing.
      split: brings the input into those that one figure shows together.
      reads: the analysis, a name in `analyses.READERS`.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Sequence[Any]], Figure]
    split: Callable[[Sequence[Any]], list[list[Any]]]
    reads: str = ""


def run_of(one: Input) -> Run:
    return one.run if isinstance(one, Found) else one


def _by(key: Callable[[Run], Hashable]) -> Callable[[Sequence[Input]], list[list[Input]]]:
    def split(inputs: Sequence[Input]) -> list[list[Input]]:
        groups: dict[Hashable, list[Input]] = {}
        for one in inputs:
            groups.setdefault(key(run_of(one)), []).append(one)
        return list(groups.values())

    return split


def _task(run: Run) -> Hashable:
    return run.dataset, run.network


def _any_size(run: Run) -> Hashable:
    return run.experiment["data"]["name"], run.experiment["data"]["dir"], run.network


KINDS = (
    Kind(
        "curves",
        "Losses in training and on the test split",
        "Mean over seeds; bands are ± one standard deviation, dotted lines the hand-over to the next stage. As AFA "
        "Fig. 3 and 5.",
        curves,
        _by(_task),
    ),
    Kind(
        "schedules",
        "Learning curves by rate schedule",
        "Top-1 on the test split, mean over seeds with ± one standard deviation. As DELTA Fig. 3.",
        schedules,
        _by(_task),
    ),
    Kind(
        "images_a_class",
        "Top-1 against labelled images a class",
        "Mean over seeds; bars are ± one standard deviation. As AFA Fig. 4.",
        images_a_class,
        _by(_any_size),
    ),
    Kind(
        "alpha_beta",
        "Top-1 by alpha and beta",
        "Mean over seeds; the best cell is framed. The best of many cells on the test split looks better than it is: "
        "alpha is to be chosen by cross-validation. As DELTA Fig. 4.",
        alpha_beta,
        _by(_task),
    ),
    Kind(
        "attentive_modules",
        "Top-1 and time by the number of attentive modules",
        "Mean over seeds; bars are ± one standard deviation. As AFA Table 11, with 136.5, 138.5 and 139.4 s an "
        "epoch for 4, 8 and 12. Runs that share a machine slow each other down.",
        attentive_modules,
        _by(_task),
    ),
    Kind(
        "parameters",
        "Parameters of the network and of its attentive modules",
        "The attentive modules are thrown away after training: inference costs nothing more. As AFA Table 6.",
        parameters,
        _by(lambda run: run.dataset),
    ),
    Kind(
        "roc",
        "True against false accepts",
        "Share of genuine pairs accepted at each share of impostor pairs, over all pairs of the identities held out; "
        "mean over seeds, bands are ± one standard deviation. Vertical lines are the rates stated in tables, dotted "
        "lines where fewer than ten impostor pairs stand behind a rate. As AFA Table 12.",
        roc,
        _by(_task),
    ),
    Kind(
        "filter_distances",
        "How far the filters moved",
        "Euclidean distance of each convolution's filter from where it began, sorted, a panel a stage of the network. "
        "As DELTA Fig. 5.",
        filter_distances,
        _by(_task),
        "filter_distances",
    ),
    Kind(
        "generalisation_gap",
        "Training loss, test loss and their gap",
        "Cross-entropy of the final network, in evaluation mode on both splits. AFA's Theorem 1 bounds the gap.",
        generalisation_gap,
        _by(_task),
        "generalisation",
    ),
    Kind(
        "activation_maps",
        "Activation maps",
        "Maps of the same channels, each normalised to [0, 1], over the photo in grey; bright is active. As AFA Fig. 2 "
        "and DELTA Fig. 6 and 7.",
        activation_maps,
        alike,
        "activation_maps",
    ),
    Kind(
        "parts",
        "Activation at parts",
        "Mean normalised activation at the annotated parts, summed over the parts. As DELTA Table 3.",
        parts,
        _by(_task),
        "parts",
    ),
    Kind(
        "detectors",
        "Detectors by category",
        "Units whose activation overlaps a concept's mask by more than the threshold. As DELTA Table 4.",
        detectors,
        _by(_task),
        "dissection",
    ),
)
