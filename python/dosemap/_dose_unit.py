# SPDX-License-Identifier: Apache-2.0
"""What a dose map is in: its sidecar says it, or the caller; nothing is guessed."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from . import _errors

UNITS = ("Gy", "Gy/GBq")
# What lies beside a map of another program may be anything; ours have a few hundred kB at most.
_MAX_BYTES = 4 << 20


def find(unit: str | None, path: str | None) -> str:
    """Find what a dose map is in; `path`: where it lies, None for one in memory."""
    if unit is not None and not isinstance(unit, str):
        raise _errors.wrong_type("unit", unit, "'Gy' or 'Gy/GBq'")
    if unit is not None and unit not in UNITS:
        raise _errors.invalid(f"the unit {unit!r} is none of a dose map", "use 'Gy' or 'Gy/GBq'")
    if path is None:
        if unit is None:
            raise _errors.invalid(
                "the unit of a dose map in memory is not known", "give unit='Gy' or unit='Gy/GBq'"
            )
        return unit
    said = _of_sidecar(path)
    if unit and said and unit != said:
        raise _errors.invalid(
            f"unit={unit!r}, but its sidecar says {said}", "leave the unit out", where=path
        )
    if not (unit or said):
        raise _errors.invalid(
            "the unit of the dose map is not known: it has no sidecar that says it",
            "give unit='Gy' or unit='Gy/GBq'",
            where=path,
        )
    return unit or said or ""


def _of_sidecar(dose_path: str) -> str | None:
    """Read what NAME.json beside NAME.nii[.gz|.zst] states; None if it states none."""
    folder, name = os.path.split(dose_path)
    stems = [
        name.removesuffix(end) for end in (".nii", ".nii.gz", ".nii.zst") if name.endswith(end)
    ]
    if not stems or not stems[0]:
        return None
    sidecar = Path(folder, stems[0] + ".json")
    try:
        info = sidecar.stat()
        if not stat.S_ISREG(info.st_mode) or info.st_size > _MAX_BYTES:
            return None
        content = sidecar.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _errors.FileError(
            f"cannot read the sidecar: {error.strerror}",
            str(sidecar),
            "check the file and its permissions",
        ) from error
    try:
        facts = json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):  # of another program: as good as none
        return None
    said = facts.get("Units") if isinstance(facts, dict) else None
    return said if said in UNITS else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Object of JSON; the C library takes none with a key twice either."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError
    return dict(pairs)


def _refuse(word: str) -> None:
    """NaN and Infinity, which are no JSON."""
    raise ValueError(word)
