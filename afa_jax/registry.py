"""Finds the entries that the modules of a package offer, so that a new entry is one new file."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any


def collect(package: ModuleType, attribute: str) -> dict[str, Any]:
    """Merges the dictionary `attribute` of every module of `package`, in the order of their names.

    Raises:
      RuntimeError: two modules offer the same name, or one offers nothing.
    """
    entries: dict[str, Any] = {}
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        offered = getattr(module, attribute, None)
        if not offered:
            raise RuntimeError(f"{module.__name__} offers no {attribute}.")
        for name, entry in offered.items():
            if name in entries:
                raise RuntimeError(f"{module.__name__} offers {name!r}, which exists already.")
            entries[name] = entry
    return entries
