# SPDX-License-Identifier: Apache-2.0
"""The exceptions of the package, and how messages of the C library read in Python."""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
import warnings
from types import FrameType
from typing import Any

# dm_status of dosemap.h.
IO, FORMAT, VALUE, UNSUPPORTED, MEMORY, DEVICE, CANCELLED = 10, 20, 30, 40, 50, 60, 70


class Error(Exception):
    """What all errors of dosemap are: ``where``: ``what``; ``remedy``.

    >>> try:
    ...     dosemap.load_model("no-such-file.safetensors")
    ... except dosemap.Error as error:
    ...     print(error.where)
    no-such-file.safetensors

    Attributes:
        what: what is wrong, with the value that was found.
        where: the file, and the place in it; empty if no file is involved.
        remedy: what to do about it; may be empty.
        status: the number of the C library's status (``dm_status`` in ``dosemap.h``).

    """

    def __init__(
        self, what: str = "", where: str = "", remedy: str = "", status: int = VALUE
    ) -> None:
        self.what, self.where, self.remedy, self.status = what, where, remedy, status
        # Not super(): OSError would take the words for errno, strerror and a file's name.
        BaseException.__init__(self, str(self))

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{where}{self.what}{remedy}"

    def __reduce__(self) -> tuple[type[Error], tuple[str, str, str, int]]:
        return type(self), (self.what, self.where, self.remedy, self.status)

    def in_file(self, path: str | None) -> None:
        """Name `path` as the place of the error, if it has none."""
        if path and not self.where:
            self.where = path
            self.args = (str(self),)


class FileError(Error, OSError):
    """A file cannot be opened, read or written; ``filename`` is its name."""

    def __init__(self, what: str = "", where: str = "", remedy: str = "", status: int = IO) -> None:
        super().__init__(what, where, remedy, status)
        self.filename = where or None


class FileMissingError(FileError, FileNotFoundError):
    """There is no such file."""

    def __init__(self, what: str = "", where: str = "", remedy: str = "", status: int = IO) -> None:
        super().__init__(what, where, remedy, status)
        self.errno = errno.ENOENT


class FormatError(Error, ValueError):
    """A file does not hold what its format promises."""


class InvalidValueError(Error, ValueError):
    """An argument or a value of an image is missing or out of range."""


class UnsupportedError(Error, NotImplementedError):
    """Valid, but not something that this build handles."""


class OutOfMemoryError(Error, MemoryError):
    """More memory would be needed than there is, or than ``memory=`` allows."""


class DeviceError(Error, RuntimeError):
    """A CUDA device, its driver or a library for it is missing or failed."""


class CancelledError(Error):
    """The progress callback asked to stop."""


class MissingPackageError(Error, ImportError):
    """A Python package is missing that this, and only this, needs."""


_CLASSES: dict[int, type[Error]] = {
    IO: FileError,
    FORMAT: FormatError,
    VALUE: InvalidValueError,
    UNSUPPORTED: UnsupportedError,
    MEMORY: OutOfMemoryError,
    DEVICE: DeviceError,
    CANCELLED: CancelledError,
}

# ---- The command line's words in Python ----------------------------------------------------------

# Each option that the library's messages name, and the keyword of Model.predict() that it is; None
# for options that have none: they belong to commands, and stay as they are.
KEYWORDS: dict[str, str | None] = {
    "--activity": "activity_gbq",
    "--batch": "batch",
    "--body-weight": "body_weight_kg",
    "--convolutions": "convolutions",
    "--ct": "ct",
    "--ct-is-hu": "ct_is_hu=True",
    "--decay-correction": "decay_correction",
    "--device": "device",
    "--force-tile": "force_tile=True",
    "--half-life": "half_life_s",
    "--injected": "injected_mbq",
    "--injection-time": "injection_time",
    "--list-gpus": None,  # of nvidia-smi
    "--long": None,  # of zstd
    "--memory": "memory",
    "--model": "load_model",
    "--nan-to-zero": "nan_to_zero=True",
    "--overlap": "overlap",
    "--precision": "precision",
    "--radionuclide": "radionuclide",
    "--resample-labels": "resample_labels=True",
    "--residual": "residual_mbq",
    "--scan-time": "scan_time",
    "--size": None,  # of dosemap bench
    "--threads": "threads",
    "--skip-air": "skip_air",
    "--tile": "tile",
    "--tune": None,  # of dosemap bench
    "--ultra": None,  # of zstd
    "--units": "units",
}
_NUMBERS = frozenset({"batch", "body_weight_kg", "half_life_s", "injected_mbq", "overlap",
                      "residual_mbq", "threads"})  # fmt: skip

# What behind an option is its value: WORDS IN CAPITALS, a|b|c, a number, or one of these words.
_VALUE = (
    r"[A-Z]+(?::[A-Z]+)*\b|\w+(?:\|\w+)+|\d+\b|(?:auto|bf16|cpu|cuda|float32|library|own|whole)\b"
)
_OPTION = re.compile(rf"(--[a-z]+(?:-[a-z]+)*)(?: ({_VALUE}))?")
_QUOTED_COMMAND = re.compile(r"('(?:dosemap|nvidia-smi) [^']*')")
_COMMANDS = {"'dosemap doctor'": "dosemap.doctor()", "'dosemap forward'": "model.forward()"}
_SIDECAR = re.compile(r", or [A-Z][^;]* in the sidecar(?:; ImageDecayCorrected [^;]*)?")


def _quoted(keyword: str, value: str) -> str:
    if keyword in _NUMBERS or value.isdigit() or value == "FILE":
        return value
    return "|".join(f"'{word}'" for word in value.split("|"))


def _keyword(match: re.Match[str]) -> str:
    option, value = match.groups()
    keyword = KEYWORDS.get(option)
    if keyword is None:
        return match.group()
    if keyword == "load_model":
        return f"load_model({value or ''})"
    if value is None:
        return keyword
    if "=" in keyword:
        return f"{keyword} {value}"
    return f"{keyword}={_quoted(keyword, value)}"


def in_python(text: str) -> str:
    """`text` of the library with keywords instead of the command line's options."""
    parts = _QUOTED_COMMAND.split(text)
    parts[::2] = [_OPTION.sub(_keyword, part) for part in parts[::2]]
    parts[1::2] = [_COMMANDS.get(part, part) for part in parts[1::2]]
    return "".join(parts)


def without_sidecar(remedy: str) -> str:
    """`remedy` for a PET that has no sidecar, being in memory."""
    return _SIDECAR.sub(", or **dosemap.pet_info(PATH) of the PET's file with its sidecar", remedy)


def error_of(status: int, where: str, what: str, remedy: str) -> Error:
    """Make the exception for a failure of the C library."""
    kind = _CLASSES.get(status, Error)
    if kind is FileError and os.strerror(errno.ENOENT) in what:
        kind = FileMissingError
    return kind(in_python(what), where, in_python(remedy), status)


# ---- Errors that the package finds by itself -----------------------------------------------------


def invalid(what: str, remedy: str = "", where: str = "") -> InvalidValueError:
    """Make the error of an argument that is missing, out of range, or contradicts another."""
    return InvalidValueError(what, where, remedy, VALUE)


def warn(text: str) -> None:
    """Warn at the line, outside of this package, that called it."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame and os.path.dirname(frame.f_code.co_filename) == os.path.dirname(__file__):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def described(value: object) -> str:
    """`value` in an error message: short, whatever it is."""
    if value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value)
        return text if len(text) <= 60 else text[:57] + "..."
    kind = type(value)
    module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    return f"a {module}{kind.__qualname__}"


def wrong_type(keyword: str, value: object, wanted: str) -> TypeError:
    """Make the error of a keyword's value that is of a type that it cannot have."""
    return TypeError(f"{keyword} wants {wanted}, not {described(value)}")


def optional(package: str, purpose: str) -> Any:  # noqa: ANN401
    """Import the package, or say what it would be for and how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"{purpose} needs the package {package}, which cannot be imported ({error})",
            remedy=f"pip install {package}",
            status=UNSUPPORTED,
        ) from error


def numpy(purpose: str = "this") -> Any:  # noqa: ANN401
    """numpy, which `import dosemap` does without."""
    return optional("numpy", purpose)


for _class in (Error, FileMissingError, MissingPackageError, *_CLASSES.values()):
    _class.__module__ = "dosemap"
