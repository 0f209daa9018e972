"""Reads pickles that hold plain containers and what the caller builds, and can do nothing else.

A pickle is a program that may name any function and call it. Python's own unpickler runs it; this one steps through the
opcodes, which `pickletools` decodes, and knows those alone that make numbers, strings, lists, tuples and dictionaries.
A name is no more than a `Name`, and is called only if the caller gave a builder for it.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple, cast

from afa_jax.errors import UserError


class Name(NamedTuple):
    """A global that a pickle asks for; it is not looked up."""

    module: str
    name: str


class Clipped:
    """A file of which no more can be asked than it has, so that a wrong length cannot take up memory."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size = file, size

    def read(self, count: int) -> bytes:
        return self._file.read(max(0, min(count, self._size - self._file.tell())))

    def readline(self) -> bytes:
        return self._file.readline()

    def tell(self) -> int:
        return self._file.tell()

    def exactly(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
          EOFError: there are fewer.
        """
        content = self.read(count)
        if count < 0 or len(content) != count:
            raise EOFError("it ends too early")
        return content


_MARK = object()
_PUSH = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}
_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    }
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS, _GETS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"}), frozenset({"GET", "BINGET", "LONG_BINGET"})


def load(
    file: Clipped,
    builders: Mapping[Name, Callable[..., Any]],
    persistent: Callable[[Any], Any] | None = None,
    kinds: Callable[[Name], bool] = lambda name: False,
) -> Any:
    """Reads one pickle; the file is left behind it. Byte strings of Python 2 are read as latin-1.

    Args:
      builders: what may be called, by name; a builder must check its arguments. An object that it gives may have a
        method `build`, which is handed the state that the pickle keeps for it; other states are dropped.
      persistent: gives what stands outside of the pickle for the reference to it.
      kinds: further names that may be mentioned, though not called.

    Raises:
      UserError: the pickle asks for any other name.
      Exception: it is damaged; whatever its bytes happen to bring about.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        place = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK)
        taken = stack[place + 1 :]
        del stack[place:]
        return taken

    def ask(name: Name) -> Name:
        if name not in builders and not kinds(name):
            raise UserError(
                f"its pickle asks for {name.module}.{name.name}, which is neither a tensor nor a plain container; "
                "it is refused, because such a file can run code"
            )
        return name

    stream: Any = file  # what genops asks of a file, it has
    for opcode, value, _ in pickletools.genops(stream):
        code, argument = opcode.name, cast(Any, value)
        if code in ("PROTO", "FRAME"):
            pass
        elif code in _LITERALS:
            stack.append(argument)
        elif code in _PUSH:
            stack.append(_PUSH[code])
        elif code in _EMPTY:
            stack.append(_EMPTY[code]())
        elif code in _TUPLES:
            taken = stack[-_TUPLES[code] :]
            del stack[-_TUPLES[code] :]
            stack.append(tuple(taken))
        elif code == "MARK":
            stack.append(_MARK)
        elif code == "TUPLE":
            stack.append(tuple(since_mark()))
        elif code == "LIST":
            stack.append(since_mark())
        elif code in ("APPEND", "APPENDS"):
            taken = since_mark() if code == "APPENDS" else [stack.pop()]
            _plain(stack[-1], list).extend(taken)
        elif code in ("SETITEM", "SETITEMS", "DICT"):
            taken = [stack.pop(-2), stack.pop()] if code == "SETITEM" else since_mark()
            if code == "DICT":
                stack.append({})
            _plain(stack[-1], dict).update(zip(taken[::2], taken[1::2], strict=True))
        elif code in _PUTS or code == "MEMOIZE":
            memo[len(memo) if code == "MEMOIZE" else argument] = stack[-1]
        elif code in _GETS:
            stack.append(memo[argument])
        elif code == "POP":
            stack.pop()
        elif code == "POP_MARK":
            since_mark()
        elif code == "GLOBAL":
            stack.append(ask(Name(*argument.split(" ", 1))))
        elif code == "STACK_GLOBAL":
            name = stack.pop()
            stack.append(ask(Name(_plain(stack.pop(), str), _plain(name, str))))
        elif code in ("REDUCE", "NEWOBJ"):
            arguments = _plain(stack.pop(), tuple)
            stack.append(builders[_plain(stack.pop(), Name)](*arguments))
        elif code == "BUILD":
            state = stack.pop()
            if hasattr(type(stack[-1]), "build"):
                stack[-1].build(state)
        elif code in ("PERSID", "BINPERSID") and persistent is not None:
            stack.append(persistent(argument if code == "PERSID" else stack.pop()))
        elif code == "STOP":
            return stack.pop()
        else:
            raise ValueError(f"the opcode {code} has no place in a file of weights")
    raise EOFError("it ends too early")


def _plain(value: Any, kind: type) -> Any:
    """`value`, which must be exactly of `kind`."""
    if type(value) is not kind:
        raise ValueError(f"{kind.__name__} expected, {type(value).__name__} found")
    return value
