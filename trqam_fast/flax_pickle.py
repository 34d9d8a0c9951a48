"""Reads pickles of the authors' JAX code without executing anything in them.

A pickle is a program. The interpreter below knows numbers, strings, containers and numpy arrays,
names nothing but the constructors of these, calls only functions of this module, and stops at
anything else.

Python's own one with a `find_class` that returns nothing but these functions would be shorter, and
would import nothing either, but a small file could still end or starve the process: it grows its
memo to whatever index the file names (9 bytes made it write 2 GiB, the largest index would make it
64), a tuple nested a million times and used as a key overflows the C stack where it is hashed
(1 MB, segmentation fault), it takes codes of the extension registry from a cache of the process
before it asks `find_class`, sets attributes of any object, our functions among them, and has no
bound on the number of objects (64 bytes of memory for each byte of empty dictionaries).
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trqam_fast.damage import reading
from trqam_fast.errors import UsageError
from trqam_fast.files import read_bytes
from trqam_fast.text import printable

LARGEST_FILE = 2**32
"""Bytes of a file that is read at all; the authors' largest checkpoints have a few hundred MB."""

MOST_OPERATIONS = 2**18
"""Operations of a pickle, each of which makes one object at the most; a checkpoint has 8,300."""

DTYPES = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"b1", "f2", "f4", "f8"}

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MARK = object()


class Refused(Exception):
    """The file asks for something that a checkpoint does not need."""


@dataclass(frozen=True)
class Global:
    """A name that the file mentions, with what stands in for it."""

    name: str
    call: Callable[..., Any] | None


@dataclass
class DType:
    """A plain dtype under construction."""

    code: str
    order: str | None = None

    def build(self, state: Any) -> None:
        """Take the state that numpy pickles with a dtype: version, byte order, and no fields."""
        plain = isinstance(state, tuple) and len(state) >= 8 and state[2:5] == (None, None, None)
        if self.order is not None or not plain or state[1] not in ("<", ">", "=", "|"):
            raise Refused("it describes a dtype with fields or of an unknown kind")
        self.order = state[1]

    @property
    def value(self) -> np.dtype:
        """The dtype."""
        return np.dtype((self.order or "=") + self.code)


@dataclass
class Array:
    """A numpy array under construction."""

    value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """Take the state that numpy pickles with an array: version, shape, dtype, order, bytes."""
        if self.value is not None or not isinstance(state, tuple) or len(state) != 5:
            raise Refused("it describes an array in an unknown way")
        _, shape, dtype, fortran, data = state
        self.value = array_of(data, dtype, shape, "F" if fortran is True else "C")


def array_of(data: Any, dtype: Any, shape: Any, order: Literal["C", "F"]) -> np.ndarray:
    """Return `data` seen as an array; nothing is copied, whatever shape the file claims."""
    if not isinstance(dtype, DType) or not isinstance(data, (bytes, bytearray)):
        raise Refused("it holds an array of objects; only numbers are read")
    whole = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 2**40 for n in shape)
    sized = whole and len(shape) <= 8 and math.prod(shape) * dtype.value.itemsize == len(data)
    if not sized:
        raise Refused(f"it holds {len(data)} bytes for an array of another size")
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


def make_dtype(code: Any, *_: Any) -> DType:
    """Stand in for numpy.dtype."""
    if not isinstance(code, str) or code not in DTYPES:
        raise Refused(f"it holds numbers of type {shown(code)}; only {', '.join(sorted(DTYPES))}")
    return DType(code)


def reconstruct(kind: Any, *_: Any) -> Array:
    """Stand in for numpy's `_reconstruct`, which makes an empty array for a state to fill."""
    if not isinstance(kind, Global) or kind.name != "numpy.ndarray":
        raise Refused("it makes an array of an unknown class")
    return Array()


def from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    """Stand in for numpy's `_frombuffer`, of protocol 5."""
    return Array(array_of(data, dtype, shape, "F" if order == "F" else "C"))


def scalar(dtype: Any, data: Any) -> Array:
    """Stand in for numpy's `scalar`."""
    return Array(array_of(data, dtype, (), "C"))


def reconstruct_jax(function: Any, arguments: Any, state: Any, *_: Any) -> Array:
    """Stand in for jax's `_reconstruct_array`: a numpy array, then facts about it."""
    if not isinstance(function, Global) or function.call is not reconstruct:
        raise Refused("it makes a jax array out of something else than a numpy array")
    array = reconstruct(*arguments) if isinstance(arguments, tuple) else reconstruct(None)
    array.build(state)
    return array


def make_dict(items: Any = None) -> dict[Any, Any]:
    """Stand in for OrderedDict() and FrozenDict(a dictionary)."""
    items = {} if items is None else items
    if not isinstance(items, dict):
        raise Refused("it makes a dictionary of something else")
    return items


ARRAYS: dict[str, Callable[..., Any]] = {
    "multiarray._reconstruct": reconstruct,
    "multiarray.scalar": scalar,
    "numeric._frombuffer": from_buffer,
}
"""What numpy pickles arrays with, in a package that has two names."""

ALLOWED: dict[str, Callable[..., Any] | None] = {
    "numpy.ndarray": None,
    "numpy.dtype": make_dtype,
    "jax._src.array._reconstruct_array": reconstruct_jax,
    "collections.OrderedDict": make_dict,
    "flax.core.frozen_dict.FrozenDict": make_dict,
    **{
        f"{package}.{name}": function
        for package in ("numpy.core", "numpy._core")
        for name, function in ARRAYS.items()
    },
}


def shown(value: Any) -> str:
    """A name from the file, fit for a terminal."""
    return printable(value if isinstance(value, str) else type(value).__name__, 80)


class Machine:
    """Interprets a pickle with the few operations that plain data need."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """Return what the pickle holds, arrays as `Array`.

        Raises:
            Refused: an operation or a name that is not known, or too many operations.
            ValueError, IndexError, KeyError, TypeError: the pickle is damaged.
        """
        for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
            if count == MOST_OPERATIONS:
                raise Refused(f"it has more than {MOST_OPERATIONS:,} operations")
            if operation.name == "STOP":
                return self.pop()
            self.step(operation.name, argument)
        raise ValueError("it ends too early")

    def pop(self) -> Any:
        """Take the top of the stack."""
        value = self.stack.pop()
        if value is MARK:
            raise ValueError("it ends a list that it did not begin")
        return value

    def pop_mark(self) -> list[Any]:
        """Take everything above the last mark."""
        items: list[Any] = []
        while (value := self.stack.pop()) is not MARK:
            items.append(value)
        return items[::-1]

    def step(self, name: str, argument: Any) -> None:
        """Do one operation."""
        if name in ("PROTO", "FRAME"):
            return
        if name in VALUES:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in TUPLES:
            items = [self.pop() for _ in range(TUPLES[name])]
            self.stack.append(tuple(items[::-1]))
        elif name == "MARK":
            self.stack.append(MARK)
        elif name == "TUPLE":
            self.stack.append(tuple(self.pop_mark()))
        elif name in ("LIST", "APPEND", "APPENDS"):
            items = [self.pop()] if name == "APPEND" else self.pop_mark()
            self.grow([] if name == "LIST" else self.pop(), list, items)
        elif name in ("DICT", "SETITEM", "SETITEMS"):
            items = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.pop_mark()
            self.grow({} if name == "DICT" else self.pop(), dict, items)
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "GLOBAL":
            self.stack.append(find(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            self.stack.append(find(module, attribute))
        elif name == "REDUCE":
            arguments, function = self.pop(), self.pop()
            self.stack.append(call(function, arguments))
        elif name == "BUILD":
            state, target = self.pop(), self.stack[-1]
            if not isinstance(target, (Array, DType)):
                raise Refused(f"it sets the state of a {shown(target)}")
            target.build(state)
        else:
            raise Refused(f"it uses the pickle operation {name}")

    def grow(self, target: Any, kind: type[list] | type[dict], items: list[Any]) -> None:
        """Add items to a container of `kind` and put it back; keys are numbers or strings."""
        if type(target) is not kind:
            raise Refused(f"it adds items to a {shown(target)}")
        if isinstance(target, list):
            target.extend(items)
        else:
            for key, value in zip(items[::2], items[1::2], strict=True):
                if not isinstance(key, (str, int)):
                    raise Refused(f"it uses a {shown(type(key).__name__)} as a key")
                target[key] = value
        self.stack.append(target)


def find(module: Any, attribute: Any) -> Global:
    """Return the stand-in of a name; nothing is imported."""
    name = f"{module}.{attribute}" if isinstance(module, str) else ""
    if not isinstance(attribute, str) or name not in ALLOWED:
        raise Refused(f"it names {shown(name) or 'something that is not text'}")
    return Global(name, ALLOWED[name])


def call(function: Any, arguments: Any) -> Any:
    """Call a stand-in."""
    if not isinstance(function, Global) or function.call is None:
        name = function.name if isinstance(function, Global) else type(function).__name__
        raise Refused(f"it calls {shown(name)}")
    if not isinstance(arguments, tuple):
        raise Refused(f"it calls {function.name} without arguments")
    return function.call(*arguments)


def read(path: Path) -> Any:
    """Return what a pickle holds: containers, numbers, and `Array`s with numpy arrays.

    Containers that the file mentions twice are the same object; a hostile file can nest them
    endlessly, so take what you need by its name instead of walking through everything.

    Raises:
        UsageError: it holds something else than plain data.
        Damaged: it is no whole pickle.
        Unreadable: the system refuses.
    """
    with reading(path, "is damaged or no pickle", "copy it again from where it came"):
        try:
            return Machine().run(read_bytes(path, LARGEST_FILE))
        except Refused as error:
            raise UsageError(
                f"{path} is refused because {error}, which no plain checkpoint needs; nothing in "
                "it was executed"
            ) from None
