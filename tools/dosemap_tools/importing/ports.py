# SPDX-License-Identifier: Apache-2.0
"""What the user says of inputs and outputs: quantities, units and intensity transforms."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dosemap_tools.importing.network import UNITS, Json, NetworkImportError, Port

# Names of ports that were given none.
_NAMES = {"uptake": "pet", "suv": "pet", "hu": "ct", "dose_per_activity": "dose"}
PORT_FORM = "[NAME:]QUANTITY[:UNIT[:CHANNELS]]"
STEP_FORM = "scale=A[,offset=B], clip=LOW:HIGH, log1p, expm1, sqrt, square"
MAX_STEPS = 8

# How much of the quantity's own unit 1 of a unit is. %IA/mL is the share of the injected activity
# in 1 mL; the uptake is normalised to 78.7 kg.
_UNIT_FACTORS = {
    "uptake": {"g/mL": 1.0, "%IA/mL": 787.0, "%ID/mL": 787.0},
    "suv": {"g/mL": 1.0, "kg/L": 1.0},
    "hu": {"HU": 1.0},
}
_DOSE = {"Gy": 1.0, "cGy": 1e-2, "mGy": 1e-3, "rad": 1e-2}
_ACTIVITY_GBQ = {"GBq": 1.0, "MBq": 1e-3, "kBq": 1e-6, "Bq": 1e-9, "mCi": 0.037, "Ci": 37.0}
_DOSE_UNIT = re.compile(rf"({'|'.join(_DOSE)})/([0-9]+(?:\.[0-9]+)?)?({'|'.join(_ACTIVITY_GBQ)})")
_WORDS = {"log1p", "expm1", "sqrt", "square"}


@dataclass(frozen=True)
class StatedPort:
    """A port as it was stated; `channels` is 0 where that is left to the network."""

    name: str
    quantity: str
    unit: str
    channels: int = 0
    steps: tuple[Json, ...] = ()


@dataclass(frozen=True)
class SourceTensor:
    """An input or output of the network as its file has it; None is a dimension that is open."""

    name: str
    shape: tuple[int | None, ...] | None  # with the batch

    @property
    def channels(self) -> int | None:
        """Return the number of channels, if the file says it."""
        return self.shape[1] if self.shape is not None and len(self.shape) > 1 else None

    def text(self) -> str:
        """Return name and shape for people."""
        if self.shape is None:
            return self.name
        sizes = ", ".join("N" if i == 0 else str(n or "?") for i, n in enumerate(self.shape))
        return f"{self.name} ({sizes})"


class UsageError(NetworkImportError):
    """An option is missing, or its value is none that it may have."""


def usage_fault(option: str, value: str, want: str) -> UsageError:
    """Return the error for an option's value."""
    return UsageError(f"{option} is {value!r}", remedy=f"it has to be {want}")


def parse_port(text: str, option: str) -> StatedPort:
    """Read NAME:QUANTITY:UNIT:CHANNELS, of which only the quantity is needed."""
    fields = text.split(":")
    if len(fields) < 2 or fields[1] not in UNITS:
        fields = ["", *fields]
    if len(fields) > 4 or fields[1] not in UNITS:
        raise usage_fault(option, text, f"{PORT_FORM} with a quantity of {', '.join(UNITS)}")
    quantity = fields[1]
    channels = fields[3] if len(fields) > 3 else "0"
    if not channels.isdecimal():
        raise usage_fault(option, text, f"{PORT_FORM} with a number of channels")
    unit = fields[2] if len(fields) > 2 else ""
    name = fields[0] or _NAMES.get(quantity, option.lstrip("-"))
    unit = unit or UNITS[quantity]
    try:
        unit_factor(quantity, unit)
    except NetworkImportError as error:
        raise UsageError(error.what, where=option, remedy=error.remedy) from error
    return StatedPort(name, quantity, unit, int(channels))


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _parse_step(text: str) -> Json:
    if text in _WORDS:
        return {text: True}
    word, _, value = text.partition("=")
    if word == "clip":
        low, high = (_number(part) for part in value.split(":"))
        if low > high:
            raise ValueError(text)
        return {"clip": [low, high]}
    parts = [part.split("=") for part in text.split(",")]
    values = {name: value for name, value in parts}
    if len(values) < len(parts) or not values.keys() <= {"scale", "offset"}:
        raise ValueError(text)
    scale, offset = _number(values.get("scale", "1")), _number(values.get("offset", "0"))
    return {"scale": scale, "offset": offset}


def parse_steps(text: str, option: str) -> tuple[str, list[Json]]:
    """Read "[PORT:]STEP STEP ..."; the port is "" where none is named."""
    port, separator, rest = text.partition(":")
    if not separator or "=" in port or " " in port.strip():
        port, rest = "", text
    try:
        return port.strip(), [_parse_step(word) for word in rest.split() if word != "none"]
    except ValueError:
        raise usage_fault(option, text, f"[PORT:] and steps of {STEP_FORM}, or none") from None


def _is_step(step: object) -> bool:
    """Return whether an object is an intensity step as weights/FORMAT.md has it."""
    if not isinstance(step, dict):
        return False
    if len(step) == 1 and next(iter(step)) in _WORDS:
        return next(iter(step.values())) is True
    if step.keys() == {"scale", "offset"}:
        return all(map(is_number, step.values()))
    clip = step.get("clip") if len(step) == 1 else None
    return isinstance(clip, list) and len(clip) == 2 and all(map(is_number, clip))


def is_number(value: object) -> bool:
    """Return whether a value of JSON is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def card_port(value: object, where: str) -> StatedPort:
    """Read a port of a card, which has the form of weights/FORMAT.md."""
    remedy = "its form is in weights/FORMAT.md, 'inputs' and 'outputs' of the graph"
    if not isinstance(value, dict) or value.get("quantity") not in UNITS:
        raise NetworkImportError(f"{value!r} is no port", where=where, remedy=remedy)
    unknown = value.keys() - {"name", "quantity", "unit", "channels", "intensity"}
    channels, steps = value.get("channels", 0), value.get("intensity", [])
    name, unit = value.get("name", _NAMES.get(value["quantity"], "")), value.get("unit", "")
    for key, good in {
        "name": isinstance(name, str) and name,
        "unit": isinstance(unit, str),
        "channels": type(channels) is int and channels >= 0,
        "intensity": isinstance(steps, list) and all(map(_is_step, steps)),
    }.items():
        if not good:
            raise NetworkImportError(f"{key!r} of {value!r}", where=where, remedy=remedy)
    if unknown:
        raise NetworkImportError(f"unknown: {sorted(unknown)}", where=where, remedy=remedy)
    unit = unit or UNITS[value["quantity"]]
    try:
        unit_factor(value["quantity"], unit)
    except NetworkImportError as error:
        raise NetworkImportError(error.what, where=where, remedy=error.remedy) from error
    return StatedPort(name, value["quantity"], unit, channels, tuple(steps))


def unit_factor(quantity: str, unit: str) -> float:
    """Return how much of the quantity's own unit 1 of `unit` is."""
    if quantity == "other":
        if not 0 < len(unit.encode()) <= 64 or not unit.isprintable():
            remedy = "state it, such as other:mm; 1 where it has none"
            raise NetworkImportError(f"the unit of other is {unit!r}", remedy=remedy)
        return 1.0
    if quantity == "dose_per_activity":
        match = _DOSE_UNIT.fullmatch(unit)
        if match and float(match[2] or 1) > 0:
            dose, number, activity = match.groups()
            return _DOSE[dose] / (_ACTIVITY_GBQ[activity] * float(number or 1))
        known = (
            f"{', '.join(_DOSE)} per {', '.join(_ACTIVITY_GBQ)}, such as mGy/MBq,"
            " or Gy/7.4GBq of a network that saw doses of 7.4 GBq"
        )
    else:
        if unit in _UNIT_FACTORS[quantity]:
            return _UNIT_FACTORS[quantity][unit]
        known = ", ".join(_UNIT_FACTORS[quantity])
    remedy = f"known units: {known}; any other as quantity 'other', which predict cannot use"
    if quantity in ("uptake", "suv") and "Bq" in unit:
        remedy = (
            "a concentration says nothing without the activity that was injected;"
            " the network has to see uptake or SUV (g/mL)"
        )
    raise NetworkImportError(f"the unit of {quantity} is {unit!r}", remedy=remedy)


def _with_unit(port: StatedPort, *, is_input: bool) -> tuple[Port, str]:
    """Return the port in the quantity's own unit, and a note if that takes a conversion."""
    factor = unit_factor(port.quantity, port.unit)
    steps, note = list(port.steps), ""
    if factor != 1.0:
        scale = 1.0 / factor if is_input else factor
        step = {"scale": scale, "offset": 0.0}
        steps.insert(0 if is_input else len(steps), step)
        own = UNITS[port.quantity]
        note = f"{port.name}: 1 {port.unit} is {factor:.9g} {own}: a step of intensity"
    if len(steps) > MAX_STEPS:
        raise NetworkImportError(
            f"{port.name} has {len(steps)} intensity steps", remedy=f"{MAX_STEPS} are allowed"
        )
    unit = UNITS[port.quantity] or port.unit
    return Port(port.name, port.quantity, unit, port.channels or 1, tuple(steps)), note


def with_channels(
    ports: Sequence[StatedPort], tensors: Sequence[SourceTensor], option: str
) -> list[StatedPort]:
    """Share the channels of the network's tensors among the ports that name no number."""
    counts = [tensor.channels for tensor in tensors]
    if all(port.channels for port in ports) or not tensors or None in counts:
        return list(ports)
    total = sum(count or 0 for count in counts)
    if len(ports) == len(tensors):
        shares: Iterable[int] = (count or 0 for count in counts)
    elif len(ports) == total:
        shares = (1 for _ in ports)
    else:
        have = "; ".join(tensor.text() for tensor in tensors)
        raise UsageError(
            f"{option} is given {len(ports)} times for {total} channels ({have})",
            remedy=f"one for each channel, one for each tensor, or {PORT_FORM}",
        )
    pairs = zip(ports, shares, strict=True)
    return [replace(port, channels=port.channels or share) for port, share in pairs]


def graph_ports(
    ports: Sequence[StatedPort], tensors: Sequence[SourceTensor], option: str
) -> tuple[tuple[Port, ...], list[str]]:
    """Return the ports as the graph has them, and notes of units that were converted."""
    shared = with_channels(ports, tensors, option)
    made = [_with_unit(port, is_input=option == "--input") for port in shared]
    names = [port.name for port, _ in made]
    for name in names:
        if not name or len(name.encode()) > 255 or not name.isprintable():
            raise usage_fault(option, name, "a name of 1 to 255 bytes without control characters")
        if names.count(name) > 1:
            raise NetworkImportError(
                f"two ports are called {name!r}", remedy=f"name them: {option} NAME:QUANTITY"
            )
    return tuple(port for port, _ in made), [note for _, note in made if note]


def apply_intensity(values: np.ndarray, steps: Sequence[Json]) -> np.ndarray:
    """Return values after the steps of an intensity transform, as predict applies them."""
    values = values.astype(np.float64)
    for step in steps:
        if "scale" in step:
            values = values * step["scale"] + step["offset"]
        elif "clip" in step:
            values = np.clip(values, *step["clip"])
        else:
            values = getattr(np, next(iter(step)))(values)
    return values.astype(np.float32)
