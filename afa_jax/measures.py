"""What a run is judged by on its test split: top-1, or where the test images are of held-out identities, TAR."""

from collections.abc import Mapping
from typing import Any

MEASURES = {"top1": "top-1", "tar": "TAR"}
"""The name of a measure in journals and summaries, where it is a share in [0, 1], and for a person."""


def measure(summary: Mapping[str, Any]) -> str:
    """Which of `MEASURES` a run's summary states; empty for a run that failed."""
    return next((name for name in MEASURES if f"last_{name}" in summary), "")


def last(summary: Mapping[str, Any]) -> float:
    """In percent, at the last step of a finished run."""
    return 100 * summary[f"last_{measure(summary)}"]


def told(summary: Mapping[str, Any]) -> str:
    """`top-1 93.2 %`, or `TAR 93.2 % at a FAR of 1e-05`."""
    name = measure(summary)
    far = f" at a FAR of {summary['verification']['tar_at_far'][0]['far']:g}" if name == "tar" else ""
    return f"{MEASURES[name]} {last(summary):.1f} %{far}"


def verified(found: Mapping[str, Any]) -> list[str]:
    """How well identities were verified, a line a false accept rate, from the `verification` of a summary."""
    genuine, impostor = (f"{found['pairs'][kind]:,}" for kind in ("genuine", "impostor"))
    return [
        f"TAR {100 * one['tar']:.1f} % (95 % interval {100 * one['low']:.1f} to {100 * one['high']:.1f}) of {genuine} "
        f"genuine pairs at a FAR of {one['far']:g}: {one['impostors']:,} of {impostor} impostor pairs."
        for one in found["tar_at_far"]
    ]
