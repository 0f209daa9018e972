"""HTML from Python: text is escaped wherever it comes from, so that no name can do harm."""

import base64
import html
import json
from typing import Any

_VOID = frozenset(("img", "input", "br", "hr"))


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str | float | bool) -> Html:
    """An element; children that are not `Html` are escaped.

    Attributes: `class_` is `class`, an underscore within a name is a hyphen, True stands without a value, False is left
    out.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not False:
            words.append(f'{key}="{html.escape(str(value))}"')
    opened = f"<{' '.join(words)}>"
    return Html(opened if name in _VOID else f"{opened}{joined(*children)}</{name}>")


def joined(*parts: str, by: str = "") -> Html:
    """The parts one after the other; those that are not `Html` are escaped."""
    return Html(by.join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def script_json(value: Any) -> Html:
    """JSON that stands in a `<script>`: no `<` in it, so that nothing in it can end the element or open another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Html(text.replace("<", "\\u003c").replace(">", "\\u003e"))


def data_uri(kind: str, content: bytes) -> str:
    """The content as an address that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
