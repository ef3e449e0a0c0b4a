# SPDX-License-Identifier: Apache-2.0
"""Keywords of the public functions, checked: types, ranges, words."""

from __future__ import annotations

import datetime
import math
import operator
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, SupportsFloat, TypeAlias, TypedDict, cast

from . import _core, _errors

PathLike: TypeAlias = "str | os.PathLike[str]"
Number: TypeAlias = "SupportsFloat | None"
Time: TypeAlias = "str | float | datetime.time | datetime.datetime | None"
Tile: TypeAlias = "int | Sequence[int] | str | None"

# ---- Values --------------------------------------------------------------------------------------


def path_of(keyword: str, value: object) -> str:
    """Give a file's name as text; bytes as Python itself decodes names."""
    if not isinstance(value, (str, os.PathLike)):
        raise _errors.wrong_type(keyword, value, "a path")
    path = os.fsdecode(value)
    try:
        usable = bool(path) and b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise _errors.invalid(f"{keyword}={path!a} is no name of a file", "give the file's path")
    return path


def is_path(value: object) -> bool:
    """Whether `value` names a file: text or a path object."""
    return isinstance(value, (str, os.PathLike))


def _as_float(keyword: str, value: object) -> float:
    kind = type(value)
    is_number = hasattr(kind, "__float__") or hasattr(kind, "__index__")
    if isinstance(value, bool) or kind.__name__ in ("bool_", "bool") or not is_number:
        raise _errors.wrong_type(keyword, value, "a number")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]
    except (TypeError, ValueError):
        raise _errors.wrong_type(keyword, value, "one number") from None


def number(
    keyword: str, value: Number, low: float, high: float, unit: str, *, unknown: float = math.nan
) -> float:
    """Check a number from `low` to `high`; `unknown` for None."""
    if value is None:
        return unknown
    given = _as_float(keyword, value)
    if not low <= given <= high:
        raise _errors.invalid(
            f"{keyword}={given:g} is not within {low:g} and {high:g}{unit and ' ' + unit}",
            f"give {keyword} in {unit}, or leave it out" if unit else f"correct {keyword}",
        )
    return given


def count(keyword: str, value: object, high: int) -> int:
    """Check a whole number from 1 to `high`; 0 for None, which lets the library choose."""
    if value is None:
        return 0
    if isinstance(value, bool):
        raise _errors.wrong_type(keyword, value, "a whole number")
    try:
        given = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise _errors.wrong_type(keyword, value, "a whole number") from None
    if not 1 <= given <= high:
        raise _errors.invalid(f"{keyword}={given} is not within 1 and {high}", f"correct {keyword}")
    return given


def flag(keyword: str, value: object) -> bool:
    """Check that it is True or False, not what merely counts as true."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    raise _errors.wrong_type(keyword, value, "True or False")


def text(keyword: str, value: object, wanted: str) -> str:
    """Check for text that C can take: UTF-8 without NUL."""
    if not isinstance(value, str):
        raise _errors.wrong_type(keyword, value, wanted)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _errors.invalid(f"{keyword}={value!a} is not UTF-8", f"give {wanted}") from None
    if "\0" in value:
        raise _errors.invalid(f"{keyword}={value!r} holds a NUL", f"give {wanted}")
    return value


def choice(keyword: str, value: object, words: Sequence[str]) -> str:
    """Check for one of `words`."""
    given = text(keyword, value, f"one of {', '.join(map(repr, words))}")
    if given not in words:
        raise _errors.invalid(
            f"{keyword}={_errors.described(given)} is unknown",
            f"use one of {', '.join(map(repr, words))}",
        )
    return given


# ---- Quantification ------------------------------------------------------------------------------

_UNITS = ("suv", "bqml", "kbqml")
_DECAYS = ("injection", "start", "none")


def _seconds(keyword: str, value: Time) -> float:
    """Text as the command line takes it, seconds, or Python's times."""
    if type(value).__name__ == "datetime64":  # whose item() may be a plain number of nanoseconds
        value = value.astype("datetime64[us]").item()  # type: ignore[union-attr]
    if isinstance(value, str):
        try:
            return _core.time_parse(text(keyword, value, "a time"))
        except _errors.InvalidValueError as error:
            raise _errors.invalid(f"{keyword}: {error.what}", error.remedy) from None
    if isinstance(value, datetime.datetime):
        epoch = datetime.datetime(1970, 1, 1, tzinfo=value.tzinfo and datetime.timezone.utc)
        return (value - epoch).total_seconds()
    if isinstance(value, datetime.time):
        return value.hour * 3600 + value.minute * 60 + value.second + value.microsecond * 1e-6
    return number(keyword, value, -1e15, 1e15, "s")


def _zone_is_known(keyword: str, value: object) -> bool | None:
    """Whether a datetime knows its time zone; None for all that is no datetime."""
    if isinstance(value, datetime.time) and value.tzinfo is not None:
        raise _errors.invalid(
            f"{keyword} is a time of day with a time zone", "give a datetime, or no time zone"
        )
    return value.tzinfo is not None if isinstance(value, datetime.datetime) else None


def quantification(info: _core.PetInfo, keywords: dict[str, Any]) -> _core.PetInfo:
    """Override what `info` knows by what the keywords of a PET say."""
    units, decay = keywords["units"], keywords["decay_correction"]
    radionuclide = keywords["radionuclide"]
    half_life = number("half_life_s", keywords["half_life_s"], 1, 1e12, "s")
    if units is not None:
        is_spelling = isinstance(units, str) and units.lower().replace("/", "") in _UNITS
        word = units.lower().replace("/", "") if is_spelling else units
        chosen, said = choice("units", word, _UNITS), info.units
        if said not in (None, chosen):
            _errors.warn(
                f"{info.sidecar}: the values are in {said!r}, it says; units={chosen!r} is taken"
            )
        info.units = chosen
    if decay is not None:
        info.decay = choice("decay_correction", decay, _DECAYS)
    if radionuclide is not None:
        radionuclide = text("radionuclide", radionuclide, "a name such as 'Ga68'")
        info.half_life_s = _core.half_life_s(radionuclide)
        if math.isnan(info.half_life_s) and math.isnan(half_life):
            given = _errors.described(radionuclide)
            raise _errors.invalid(
                f"radionuclide={given} is unknown",
                "use one of 'Ga68', 'F18', 'Cu64', ... or give half_life_s",
            )
        info.radionuclide = radionuclide.encode()[:15].decode(errors="ignore")  # as much as C keeps
    for name, low, high, unit in (
        ("half_life_s", 1, 1e12, "s"),
        ("body_weight_kg", 1, 500, "kg"),
        ("injected_mbq", 1e-3, 1e6, "MBq"),
        ("residual_mbq", 0, 1e6, "MBq"),
    ):
        if keywords[name] is not None:
            setattr(info, name, number(name, keywords[name], low, high, unit))
    _set_times(info, keywords["injection_time"], keywords["scan_time"])
    return info


def _set_times(info: _core.PetInfo, injection: Time, scan: Time) -> None:
    zones = {_zone_is_known("injection_time", injection), _zone_is_known("scan_time", scan)}
    if zones >= {True, False}:
        raise _errors.invalid(
            "one of injection_time and scan_time has a time zone, the other has none",
            "give both with or both without",
        )
    if injection is not None:
        info.injection_time_s = _seconds("injection_time", injection)
    if scan is not None:
        info.scan_time_s = _seconds("scan_time", scan)


# ---- How a prediction runs -----------------------------------------------------------------------

_PRECISIONS = ("auto", "float32", "bf16", "fp16", "tf32")
_CONVOLUTIONS = ("auto", "library", "own")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?")


def tile_of(value: Tile) -> tuple[int, int, int] | str | None:
    """None, 'whole', 'auto', or voxels along x, y, z; one number is a cube's edge."""
    wanted = "a number of voxels, three of them (x, y, z), 'whole' or 'auto'"
    if value is None:
        return None
    if isinstance(value, str):
        if value not in ("whole", "auto"):
            given = _errors.described(value)
            raise _errors.invalid(f"tile={given} is unknown", f"tile is {wanted}")
        return value
    each: list[Any] = _values(value) if isinstance(value, Iterable) else [value] * 3
    if any(edge is None for edge in each):
        raise _errors.wrong_type("tile", None, wanted)
    edges = [count("tile", edge, 65536) for edge in each]
    if len(edges) != 3:
        raise _errors.invalid(f"tile has {len(edges)} numbers", f"tile is {wanted}")
    return edges[0], edges[1], edges[2]


def memory_of(value: object) -> int:
    """Bytes, or text such as '4G' (powers of 1024); 0 for None: what the machine leaves."""
    if value is None:
        return 0
    if not isinstance(value, str):
        return count("memory", value, 1 << 60)
    match = _MEMORY.fullmatch(value)
    size = float(match[1]) * 1024.0 ** " KMGT".index(match[2] or " ") if match else 0.0
    if not 1 <= size < 1 << 60:
        given = _errors.described(value)
        raise _errors.invalid(
            f"memory={given} is no size", "memory is bytes, or as in '4G', '800M'"
        )
    return int(size)


def _values(value: object) -> list[Any]:
    """Each of several; an array without axes, which calls itself iterable, is one."""
    several = isinstance(value, Iterable) and getattr(value, "shape", None) != ()
    return list(value) if several else [value]  # type: ignore[call-overload]


def thresholds_of(vx: object) -> tuple[float, ...]:
    """Doses for Vx, at least 0; one number is one of them."""
    if vx is None:
        return ()
    if isinstance(vx, (str, bytes)):
        raise _errors.wrong_type("vx", vx, "numbers, as in vx=(5, 10, 20)")
    values = _values(vx)
    if any(value is None for value in values):
        raise _errors.wrong_type("vx", None, "numbers")
    return tuple(number("vx", value, 0, 1e300, "") for value in values)


def _skip_air(value: object) -> float:
    if isinstance(value, str):
        choice("skip_air", value, ("off",))
        return -math.inf
    return number("skip_air", value, -1e300, 1e300, "")  # type: ignore[arg-type]


def device_of(value: object) -> str:
    """Words of the command line, or a torch.device."""
    if type(value).__module__ == "torch" and type(value).__name__ == "device":
        value = str(value)
    return text("device", value, "'auto', 'cpu', 'cuda' or 'cuda:0'")


def running_options(keywords: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the core's Predictor; hashable values."""
    return {
        "tile": tile_of(keywords["tile"]),
        "force_tile": flag("force_tile", keywords["force_tile"]),
        "overlap": number("overlap", keywords["overlap"], 0, 0.9, ""),
        "memory_bytes": memory_of(keywords["memory"]),
        "blend": choice("blend", keywords["blend"], ("gaussian", "constant")),
        "skip_air": _skip_air(keywords["skip_air"]),
        "precision": choice("precision", keywords["precision"], _PRECISIONS),
        "device": device_of(keywords["device"]),
        "threads": count("threads", keywords["threads"], 4096),
        "batch": count("batch", keywords["batch"], 1024),
        "convolutions": choice("convolutions", keywords["convolutions"], _CONVOLUTIONS),
        "nan_to_zero": flag("nan_to_zero", keywords["nan_to_zero"]),
        "v_thresholds": thresholds_of(keywords["vx"]),
        "network_values": False,
    }


# ---- What a sidecar says -------------------------------------------------------------------------


class PetKeywords(TypedDict, total=False):
    """Keywords of predict() that say how a PET is quantified."""

    units: Literal["suv", "bqml", "kbqml"]
    decay_correction: Literal["injection", "start", "none"]
    body_weight_kg: float
    injected_mbq: float
    residual_mbq: float
    radionuclide: str
    half_life_s: float
    injection_time: float
    scan_time: float


def pet_info(path: PathLike) -> PetKeywords:
    """Keywords of :meth:`Model.predict` that the sidecar of a PET knows.

    The sidecar is the BIDS-PET or dcm2niix JSON beside the file, with the same name. What it leaves
    open, or contradicts itself in, is not there; without a sidecar the dict is empty. A PET that is
    given by its path needs none of this: its sidecar is read anyway.

    Args:
        path: of the PET, not of its sidecar.

    Raises:
        FileMissingError: there is neither such a file nor a sidecar for it.
        FormatError: the sidecar is not JSON.
        InvalidValueError: a value of the wrong type, negative, or an unknown word.

    Example:
        >>> import json, pathlib
        >>> text = json.dumps({"Units": "Bq/mL", "InjectedRadioactivity": 150,
        ...                    "InjectedRadioactivityUnits": "MBq", "DecayCorrection": "ADMIN"})
        >>> _ = pathlib.Path("bq.json").write_text(text)
        >>> dosemap.pet_info("bq.nii.gz")
        {'units': 'bqml', 'decay_correction': 'injection', 'injected_mbq': 150.0}
        >>> image = dosemap.read("pet.nii.gz")
        >>> model = dosemap.load_model()
        >>> model.predict(image, **dosemap.pet_info("bq.nii.gz")).unit
        'Gy/GBq'

    """
    name = path_of("path", path)
    info = _core.PetInfo.read(name)
    if not info.sidecar and not os.path.exists(name):
        raise _errors.FileMissingError("there is no such file", name, "check the path")
    known: dict[str, str | float | None] = {
        "units": info.units,
        "decay_correction": info.decay,
        "body_weight_kg": info.body_weight_kg,
        "injected_mbq": info.injected_mbq,
        "residual_mbq": info.residual_mbq,
        "radionuclide": info.radionuclide or None,
        "half_life_s": info.half_life_s,
        "injection_time": info.injection_time_s,
        "scan_time": info.scan_time_s,
    }
    said = {key: value for key, value in known.items() if value is not None and value == value}
    return cast("PetKeywords", said)
