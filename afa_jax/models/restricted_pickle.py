"""Reads pickles that hold plain containers and what the caller builds, and can do nothing else.

A pickle is a program that may name any function and call it. Python's own unpickler runs it; this one steps through the
opcodes, which `pickletools` decodes, and knows those alone that make numbers, strings, lists, tuples and dictionaries.
A name is no more than a `Name`, and is called only if the caller gave a builder for it.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

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
    machine = _Machine(builders, persistent, kinds)
    stream: Any = file  # what genops asks of a file, it has
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "STOP":
            return machine.stack.pop()
        if opcode.name not in _OPCODES:
            raise ValueError(f"the opcode {opcode.name} has no place in a file of weights")
        _OPCODES[opcode.name](machine, argument)
    raise EOFError("it ends too early")


_MARK = object()


class _Machine:
    """A pickle's stack and memo, and what each kind of opcode does to them."""

    def __init__(
        self,
        builders: Mapping[Name, Callable[..., Any]],
        persistent: Callable[[Any], Any] | None,
        kinds: Callable[[Name], bool],
    ):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.builders, self.kinds, self.persistent = builders, kinds, persistent

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def last(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise ValueError("less is there than the next opcode takes")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def since_mark(self) -> list[Any]:
        place = next(i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is _MARK)
        return self.last(len(self.stack) - place)[1:]

    def extend(self, values: list[Any]) -> None:
        _plain(self.stack[-1], list).extend(values)

    def update(self, keys_and_values: list[Any]) -> None:
        _plain(self.stack[-1], dict).update(zip(keys_and_values[::2], keys_and_values[1::2], strict=True))

    def dictionary(self) -> None:
        taken = self.since_mark()
        self.push({})
        self.update(taken)

    def remember(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def mention(self, module: Any, name: Any) -> None:
        asked = Name(_plain(module, str), _plain(name, str))
        if asked not in self.builders and not self.kinds(asked):
            raise UserError(
                f"its pickle asks for {asked.module}.{asked.name}, which is neither a tensor nor a plain container; "
                "it is refused, because such a file can run code"
            )
        self.push(asked)

    def call(self) -> None:
        name, arguments = self.last(2)
        self.push(self.builders[_plain(name, Name)](*_plain(arguments, tuple)))

    def build(self) -> None:
        state = self.stack.pop()
        if hasattr(type(self.stack[-1]), "build"):
            self.stack[-1].build(state)

    def refer(self, pid: Any) -> None:
        if self.persistent is None:
            raise ValueError("a reference where none can be")
        self.push(self.persistent(pid))


_LITERALS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
_OPCODES: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None),
    **dict.fromkeys(_LITERALS, _Machine.push),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "MARK": lambda m, _: m.push(_MARK),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.push(tuple(m.last(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.last(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.last(3))),
    "LIST": lambda m, _: m.push(m.since_mark()),
    "APPEND": lambda m, _: m.extend(m.last(1)),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "SETITEM": lambda m, _: m.update(m.last(2)),
    "SETITEMS": lambda m, _: m.update(m.since_mark()),
    "DICT": lambda m, _: m.dictionary(),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.remember),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, place: m.push(m.memo[place])),
    "POP": lambda m, _: m.last(1),
    "POP_MARK": lambda m, _: m.since_mark(),
    "GLOBAL": lambda m, both: m.mention(*both.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.mention(*m.last(2)),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, _: m.call()),
    "BUILD": lambda m, _: m.build(),
    "PERSID": _Machine.refer,
    "BINPERSID": lambda m, _: m.refer(m.stack.pop()),
}


def _plain(value: Any, kind: type) -> Any:
    """`value`, which must be exactly of `kind`."""
    if type(value) is not kind:
        raise ValueError(f"{kind.__name__} expected, {type(value).__name__} found")
    return value
