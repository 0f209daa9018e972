"""Trees of arrays. A branch has a dotted path: `classifier.1` is `tree["classifier"]["1"]`."""

from collections.abc import Mapping
from typing import Any

import jax


def get(tree: Mapping[str, Any], path: str) -> Any:
    """The branch of `tree` at `path`."""
    for part in path.split("."):
        tree = tree[part]
    return tree


def put(tree: Mapping[str, Any], path: str, branch: Any) -> dict[str, Any]:
    """`tree` with another branch at `path`; `tree` itself stays as it is."""
    first, _, rest = path.partition(".")
    return {**tree, first: put(tree[first], rest, branch) if rest else branch}


def size(tree: Any) -> int:
    """How many numbers the arrays of `tree` hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
