"""The methods by name, each in the file of its kind; a new one is a new file that offers `METHODS`."""

import sys

from afa_jax.registry import collect
from afa_jax.transfer.method import Method

METHODS: dict[str, Method] = collect(sys.modules[__name__], "METHODS")
