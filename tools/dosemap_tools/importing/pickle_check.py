# SPDX-License-Identifier: Apache-2.0
"""The pickle inside a PyTorch checkpoint, followed step by step without building anything of it.

torch.load(weights_only=True) runs no code of the file, but it believes what the file says of its
tensors: a storage may claim more than its member holds, a tensor more than its storage, and some
allowed calls allocate what they are asked for. Here only plain data and plain dense tensors pass,
and each claim is held against the archive; torch.load reads the file afterwards.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from dosemap_tools.importing.archive import Archive
from dosemap_tools.importing.network import NetworkImportError

_MAX_PICKLE = 16 << 20
# Of a checkpoint: its steps, and the items that they put into lists, dicts and tuples. One of
# 100,000 tensors has 3 million steps. A step of five bytes can copy a list of any length.
_MAX_STEPS, _MAX_ITEMS = 4_000_000, 4_000_000
_STORAGES = {
    "torch.FloatStorage": 4,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.DoubleStorage": 8,
    "torch.LongStorage": 8,
    "torch.IntStorage": 4,
    "torch.ShortStorage": 2,
    "torch.CharStorage": 1,
    "torch.ByteStorage": 1,
    "torch.BoolStorage": 1,
}
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_DICTS = ("collections.OrderedDict", "collections.Counter")
_PLAIN = ("torch.Size", "torch.device")
# Numbers of numpy, which nnU-Net keeps beside the weights: scalar(dtype(name), bytes).
NUMPY_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
NUMPY_DTYPES = {"b1": 1} | {f"{kind}{n}": n for kind in "iu" for n in (1, 2, 4, 8)}
NUMPY_DTYPES |= {"f2": 2, "f4": 4, "f8": 8}
_DTYPE, _ENCODE = "numpy.dtype", "_codecs.encode"
_KNOWN = frozenset(
    (*_STORAGES, _TENSOR, _PARAMETER, *_DICTS, *_PLAIN, *NUMPY_SCALAR, _DTYPE, _ENCODE)
)
_DTYPES = frozenset(
    ["torch.float16", "torch.float32", "torch.float64", "torch.bfloat16", "torch.int64"]
)
_KEYS = (str, int, float, bool, type(None))
_KINDS = {
    "torch._utils._rebuild_sparse_tensor": ("a sparse tensor", "make it dense with to_dense()"),
    "torch._utils._rebuild_qtensor": ("a quantised tensor", "save the network before quantising"),
    "torch._utils._rebuild_nested_tensor": ("a nested tensor", "save plain dense tensors"),
}
_ALONE = (
    "where it was trained, save the weights alone: torch.save(model.state_dict(), 'weights.pt') or "
    "safetensors.torch.save_model(model, 'weights.safetensors'); of a checkpoint that "
    "you made yourself: torch.save(torch.load(FILE, weights_only=False)[KEY], 'weights.pt') with "
    "the KEY 'state_dict' (Lightning) or 'network_weights' (nnU-Net)"
)


class _Global:
    """A class or function that the pickle names."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Storage:
    """A stretch of the file."""

    def __init__(self, elements: int) -> None:
        self.elements = elements


class _Dtype:
    """A type of numpy's numbers, and how many bytes one has."""

    def __init__(self, item_bytes: int) -> None:
        self.item_bytes = item_bytes


class _Bytes:
    """Bytes of a number, told as text."""

    def __init__(self, count: int) -> None:
        self.count = count


class _Mark:
    """Where a list of arguments begins on the stack."""


class _Damage(Exception):  # noqa: N818  never leaves this file
    """The pickle is not one that torch.save writes."""


def _refuse(archive: Archive, what: str, remedy: str = _ALONE) -> NoReturn:
    raise NetworkImportError(what, where=str(archive.path), remedy=remedy)


def _check_globals(archive: Archive, names: list[str]) -> None:
    """Refuse what is not plain data, naming it."""
    for name in names:
        if name in _KINDS:
            what, remedy = _KINDS[name]
            _refuse(archive, f"it holds {what}", remedy)
    strange = [ascii(name) for name in names if name not in _KNOWN and name not in _DTYPES]
    if strange:
        shown = ", ".join(strange[:4]) + (", ..." if len(strange) > 4 else "")
        _refuse(
            archive,
            f"it is a pickle that wants to call or build {shown}, which could run any code; "
            "only plain tensors, numbers, texts, lists and dicts are read",
        )


def _steps(data: bytes) -> Iterator[tuple[str, Any]]:
    return ((code.name, argument) for code, argument, _ in pickletools.genops(data))


def check_pickle(archive: Archive) -> None:
    """Refuse the archive's data.pkl unless it holds plain data, and tensors that are all there."""
    data = archive.read("data.pkl", _MAX_PICKLE)
    named: dict[str, None] = {}
    try:
        for count, (name, argument) in enumerate(_steps(data)):
            if count > _MAX_STEPS:
                _refuse(archive, f"its pickle has more than {_MAX_STEPS} steps")
            if name in ("GLOBAL", "INST"):
                named[".".join(str(argument).split(" ", 1))] = None
    except NetworkImportError:
        raise
    except (ValueError, UnicodeDecodeError, EOFError, IndexError) as error:
        _refuse(archive, f"its pickle is damaged: {error}")
    _check_globals(archive, list(named))
    try:
        _Walk(archive).run(_steps(data))
    except _Damage as damage:
        _refuse(archive, f"its pickle is damaged or does more than torch.save needs: {damage}")
    except NetworkImportError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        _refuse(archive, f"its pickle is damaged: {error!r}")


class _Walk:
    """A stack machine for those steps of a pickle that torch.save writes."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.items = 0  # put into containers so far
        self.steps: dict[str, Callable[[Any], None]] = {
            "PROTO": lambda _: None,
            "GLOBAL": lambda a: self.stack.append(_Global(".".join(a.split(" ", 1)))),
            "MARK": lambda _: self.stack.append(_Mark()),
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_TUPLE": lambda _: self.stack.append(()),
            "NONE": lambda _: self.stack.append(None),
            "NEWTRUE": lambda _: self.stack.append(True),
            "NEWFALSE": lambda _: self.stack.append(False),
            "TUPLE": lambda _: self.stack.append(tuple(self.marked())),
            "TUPLE1": lambda _: self.join(1),
            "TUPLE2": lambda _: self.join(2),
            "TUPLE3": lambda _: self.join(3),
            "APPEND": lambda _: self.extend([self.stack.pop()]),
            "APPENDS": lambda _: self.extend(self.marked()),
            "SETITEM": lambda _: self.update([self.stack.pop(), self.stack.pop()][::-1]),
            "SETITEMS": lambda _: self.update(self.marked()),
            "BINPERSID": lambda _: self.stack.append(self.storage(self.stack.pop())),
            "REDUCE": lambda _: self.reduce(),
            "BUILD": lambda _: self.build(),
        }
        for name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"):
            self.steps[name] = self.stack.append
        self.steps["SHORT_BINSTRING"] = self.stack.append
        for name in ("BINPUT", "LONG_BINPUT"):
            self.steps[name] = self.put
        for name in ("BINGET", "LONG_BINGET"):
            self.steps[name] = lambda a: self.stack.append(self.memo[a])

    def run(self, steps: Iterator[tuple[str, Any]]) -> None:
        """Follow all steps; the last is STOP."""
        for name, argument in steps:
            if name == "STOP":
                return
            if name not in self.steps:
                raise _Damage(f"the step {name}")
            self.steps[name](argument)
        raise _Damage("it does not end")

    def count(self, items: int) -> None:
        """Note that so many items are put into a container."""
        self.items += items
        if self.items > _MAX_ITEMS:
            _refuse(self.archive, f"its pickle makes more than {_MAX_ITEMS} items")

    def put(self, index: int) -> None:
        """Remember what is on top."""
        self.memo[index] = self.stack[-1]

    def marked(self) -> list[Any]:
        """Take everything down to the last mark."""
        items: list[Any] = []
        while not isinstance(item := self.stack.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def join(self, count: int) -> None:
        """Make a tuple of the topmost items."""
        items = tuple(self.stack[-count:])
        if len(items) != count or any(isinstance(item, _Mark) for item in items):
            raise _Damage("a tuple of too few items")
        self.stack[-count:] = [items]

    def extend(self, items: list[Any]) -> None:
        """Add items to the list on top."""
        if type(self.stack[-1]) is not list:
            raise _Damage("items are added to what is no list")
        self.count(len(items))
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        """Put keys and values into the dict on top; nested tuples take for ever to hash."""
        if type(self.stack[-1]) is not dict or len(items) % 2:
            raise _Damage("items are put into what is no dict")
        self.count(len(items))
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in _KEYS:
                raise _Damage(f"a key of the type {type(key).__name__}")
            self.stack[-1][key] = value

    def build(self) -> None:
        """Let attributes be given to dicts, as state_dict() gives its versions, and to dtypes."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], _Dtype):
            if state not in ((3, order, None, None, None, -1, -1, 0) for order in "<|"):
                raise _Damage("a dtype that is not one of plain numbers")
            return
        if type(self.stack[-1]) is not dict or type(state) is not dict:
            raise _Damage("attributes are set on what is no dict")

    def storage(self, told: Any) -> _Storage:  # noqa: ANN401
        """Return the storage that the pickle refers to, if the archive holds all of it."""
        if type(told) is not tuple or len(told) != 5 or told[0] not in ("storage", b"storage"):
            raise _Damage("a reference to something other than a storage")
        _, kind, key, _, elements = told
        if not isinstance(kind, _Global) or kind.name not in _STORAGES or type(elements) is not int:
            raise _Damage("a storage of an unknown kind")
        member = self.archive.members.get(f"data/{key}")
        need = elements * _STORAGES[kind.name]
        if member is None or not 0 <= need <= member.size:
            have = 0 if member is None else member.size
            _refuse(
                self.archive,
                f"the storage {key!a} claims {need} bytes; the file has {have}",
                "the file is damaged: copy or save it again",
            )
        return _Storage(elements)

    def reduce(self) -> None:
        """Follow a call of one of the known functions."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Global) or type(arguments) is not tuple:
            raise _Damage("a call of what is no function")
        if function.name == _TENSOR:
            self.stack.append(self.tensor(arguments))
        elif function.name == _PARAMETER:
            if not isinstance(arguments[0], _Storage):
                raise _Damage("a parameter that is no tensor")
            self.stack.append(arguments[0])
        elif function.name in _DICTS:
            self.stack.append({})
            pairs = arguments[0] if arguments else {}
            self.count(2 * len(pairs))
            flat = pairs.items() if type(pairs) is dict else pairs
            self.update([item for key, value in flat for item in (key, value)])
        elif function.name in _PLAIN:
            self.stack.append(arguments)
        elif function.name in (*NUMPY_SCALAR, _DTYPE, _ENCODE):
            self.stack.append(self.number(function.name, arguments))
        else:
            raise _Damage(f"a call of {function.name}")

    def number(self, function: str, arguments: tuple[Any, ...]) -> _Dtype | _Bytes | None:
        """Follow the calls that make a number of numpy's."""
        if function == _DTYPE and len(arguments) == 3 and arguments[0] in NUMPY_DTYPES:
            return _Dtype(NUMPY_DTYPES[arguments[0]])
        if function == _ENCODE and type(arguments[0]) is str and arguments[1:] == ("latin1",):
            return _Bytes(len(arguments[0]))
        if function in NUMPY_SCALAR:
            dtype, value = arguments
            told = isinstance(dtype, _Dtype) and isinstance(value, _Bytes)
            if told and dtype.item_bytes == value.count:
                return None
        raise _Damage(f"a call of {function} for something other than a number")

    def tensor(self, arguments: tuple[Any, ...]) -> _Storage:
        """Check that a tensor lies in its storage and repeats nothing of it."""
        storage, offset, sizes, strides = arguments[:4]
        numbers = [offset, *sizes, *strides]
        if not isinstance(storage, _Storage) or len(sizes) != len(strides):
            raise _Damage("a tensor without storage")
        if any(type(n) is not int or n < 0 for n in numbers):
            raise _Damage("a tensor of a negative size")
        elements = math.prod(sizes)
        last = offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
        if elements > storage.elements or (elements and last >= storage.elements):
            _refuse(
                self.archive,
                f"a tensor of shape {tuple(sizes)} claims {elements} elements; its storage has "
                f"{storage.elements}",
                "save it with .contiguous() or .clone() if it was expanded",
            )
        return _Storage(elements)
