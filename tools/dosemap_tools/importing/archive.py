# SPDX-License-Identifier: Apache-2.0
"""Zip files of PyTorch, checked before anybody opens them.

PyTorch never compresses and its members lie one after the other, so whatever is compressed,
overlaps, is there twice or reaches beyond the file was not written by PyTorch: a zip bomb, or a
file that two readers read differently.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from dosemap_tools.importing.network import NetworkImportError

_MAX_MEMBERS = 65536
_MAX_DIRECTORY = 16 << 20  # bytes of the list of members
_END, _END64, _LOCATOR64, _LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\3\4"
_NAME = re.compile(r"[^\x00-\x1f\x7f\\:]{1,1024}")
REMEDY = "save it again with torch.save or torch.export.save of a current PyTorch"


@dataclass(frozen=True)
class Member:
    """Where the bytes of a member lie in the file."""

    offset: int
    size: int


@dataclass(frozen=True)
class Archive:
    """A checked archive: its members without the folder that all of them lie in."""

    path: Path
    members: dict[str, Member]

    def read(self, name: str, limit: int) -> bytes:
        """Return a member's bytes; more than `limit` are refused."""
        member = self.members.get(name)
        if member is None:
            raise NetworkImportError(
                f"the archive has no {name}", where=str(self.path), remedy=REMEDY
            )
        if member.size > limit:
            raise NetworkImportError(
                f"{name} has {member.size} bytes; at most {limit} are read", where=str(self.path)
            )
        with self.path.open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size)

    def read_json(self, name: str, limit: int) -> Any:  # noqa: ANN401
        """Return a member's JSON: no duplicate keys, no NaN, nothing beyond `limit` bytes."""
        return strict_json(self.read(name, limit), f"{self.path}: {name}")


def strict_json(text: bytes, where: str) -> Any:  # noqa: ANN401
    """Parse JSON without duplicate keys, NaN and Infinity."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("an object gives a key twice")
        return found

    def no_constant(word: str) -> NoReturn:
        raise ValueError(f"{word} is no JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise NetworkImportError(f"cannot be read as JSON: {error}", where=where) from error


def is_archive(path: Path) -> bool:
    """Return whether a file begins as a zip file does."""
    with path.open("rb") as file:
        return file.read(4) == _LOCAL


def open_archive(path: Path) -> Archive:
    """Check a zip file of PyTorch and return where its members lie; nothing is extracted."""

    def refuse(what: str) -> NoReturn:
        raise NetworkImportError(
            f"not an archive of PyTorch: {what}", where=str(path), remedy=REMEDY
        )

    size = path.stat().st_size
    with path.open("rb") as file:
        directory = _directory_offset(file, size, refuse)
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as opened:
                listed = opened.infolist()
        except (zipfile.BadZipFile, ValueError, struct.error, UnicodeDecodeError) as error:
            refuse(str(error))
        if any("/code/" in info.filename for info in listed):  # compressed, unlike all others
            what, remedy = "it is TorchScript, which is code", "save the state dict, or ONNX"
            raise NetworkImportError(what, where=str(path), remedy=remedy)
        found = [(info.filename, _member(file, info, refuse)) for info in listed]
    ends = 0
    for name, (start, member) in sorted(found, key=lambda pair: pair[1][0]):
        if start < ends or member.offset + member.size > directory:
            refuse(f"{name} overlaps another member or reaches beyond the data")
        ends = member.offset + member.size
    names = [name for name, _ in found]
    if len(set(names)) != len(names):
        refuse("a member is there twice")
    roots = {name.split("/", 1)[0] for name in names}
    if len(roots) != 1 or any("/" not in name for name in names):
        refuse("its members do not lie in one folder")
    return Archive(path, {name.split("/", 1)[1]: member for name, (_, member) in found})


def _directory_offset(file: Any, size: int, refuse: Any) -> int:  # noqa: ANN401
    """Return where the list of members begins; check how long it claims to be."""
    if size < 22:
        refuse("it is too short")
    file.seek(size - 22)
    end = file.read(22)
    if end[:4] != _END or end[20:] != b"\0\0":
        refuse("it does not end as a zip file does; it is cut off or something follows it")
    count, length, offset = struct.unpack("<HII", end[10:20])
    stop = size - 22
    if size >= 98:  # the fields of 64 bits come before, where they are
        file.seek(size - 42)
        locator = file.read(20)
        if locator[:4] == _LOCATOR64:
            (at,) = struct.unpack("<Q", locator[8:16])
            if at > size - 98:
                refuse("its list of members lies beyond the end")
            file.seek(at)
            record = file.read(56)
            if record[:4] != _END64:
                refuse("its list of members is damaged")
            count, length, offset = struct.unpack("<QQQ", record[32:56])
            stop = at
    if count > _MAX_MEMBERS or length > _MAX_DIRECTORY:
        refuse(f"it claims {count} members in a list of {length} bytes")
    if offset + length != stop:
        refuse("its list of members is not where it claims to be")
    return offset


def _member(file: Any, info: zipfile.ZipInfo, refuse: Any) -> tuple[int, Member]:  # noqa: ANN401
    """Return where a member begins, and its data, after reading what stands before them."""
    name = info.filename
    shown = ascii(name[:100])
    if not _NAME.fullmatch(name) or name[0] == "/" or ".." in name.split("/"):
        refuse(f"a member is called {shown}")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        refuse(f"{shown} is compressed ({info.compress_size} bytes claim to be {info.file_size})")
    if info.flag_bits & 0x1:
        refuse(f"{shown} is encrypted")
    file.seek(info.header_offset)
    head = file.read(30)
    if len(head) != 30 or head[:4] != _LOCAL:
        refuse(f"{shown} does not begin where the list of members says")
    method, name_length, extra_length = struct.unpack("<H16xHH", head[8:30])
    if method != 0 or file.read(name_length) != (info.orig_filename.encode()):
        refuse(f"{shown} differs from what the list of members says")
    offset = info.header_offset + 30 + name_length + extra_length
    return info.header_offset, Member(offset, info.file_size)
