# SPDX-License-Identifier: Apache-2.0
"""What the user states about a network: the statement for the graph, and the model card.

A card is a JSON object with the keys that weights/FORMAT.md has for cards, and those that it has
for what the graph says beside its nodes: patch_size, voxel_size_mm, spatial_axes, orientation,
inputs, outputs. Options of the command line win. Nothing is guessed: what is missing is listed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

from dosemap_tools.importing.network import Json, NetworkImportError, Statement
from dosemap_tools.importing.ports import (
    PORT_FORM,
    SourceTensor,
    StatedPort,
    UsageError,
    card_port,
    graph_ports,
    is_number,
    parse_port,
    parse_steps,
    usage_fault,
)

AXES = ("xyz", "zyx")
ORIENTATIONS = sorted(
    "".join(signs)
    for order in permutations(("RL", "AP", "SI"))
    for signs in product(*order)
)  # fmt: skip
MAX_PATCH = 1024
_QUANTITIES = "QUANTITY is uptake (SUV normalised to 78.7 kg), suv, hu, dose_per_activity, or other"
# Keys of the card that are asked for, and how.
_CARD_TEXTS = {
    "name": "what the program calls the model",
    "version": "of the weights",
    "summary": "what it computes from what, and what for",
    "licence": "on what terms the weights may be used",
}
_OTHER_TEXTS = ("training", "references", "limitations", "derivation")


@dataclass
class Stated:
    """All that was stated, by a card file and by options."""

    inputs: list[StatedPort] = field(default_factory=list)
    outputs: list[StatedPort] = field(default_factory=list)
    patch_size: tuple[int, int, int] | None = None
    voxel_size_mm: tuple[float, float, float] | None = None
    voxel_size_stated: bool = False
    spatial_axes: str = ""
    orientation: str = ""
    card: Json = field(default_factory=dict)


def _is_patch(value: Any) -> bool:  # noqa: ANN401
    sizes = isinstance(value, list | tuple) and len(value) == 3
    return sizes and all(type(n) is int and 1 <= n <= MAX_PATCH for n in value)


def _is_voxel_size(value: Any) -> bool:  # noqa: ANN401
    sizes = isinstance(value, list | tuple) and len(value) == 3
    return sizes and all(is_number(n) and n > 0 for n in value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: object) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(map(_is_text, value)))


_CARD_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(_CARD_TEXTS, (_is_text, "a text")),
    **dict.fromkeys(_OTHER_TEXTS, (_is_texts, "a text or a list of texts")),
    "trained": (lambda v: isinstance(v, bool), "true or false"),
    "skip_air": (lambda v: v is None or is_number(v), "a number, or null"),
    "precision": (lambda v: isinstance(v, dict), "an object (weights/FORMAT.md)"),
    "patch_size": (_is_patch, f"three numbers from 1 to {MAX_PATCH}"),
    "voxel_size_mm": (lambda v: v is None or _is_voxel_size(v), "three sizes in mm, or null"),
    "spatial_axes": (lambda v: v in AXES, " or ".join(AXES)),
    "orientation": (lambda v: v == "stored" or v in ORIENTATIONS, "RAS, LPS, ..., or stored"),
    "inputs": (lambda v: isinstance(v, list) and bool(v), "a list of ports"),
    "outputs": (lambda v: isinstance(v, list) and bool(v), "a list of ports"),
}


def _no_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key occurs twice in an object")
    return dict(pairs)


def _read_json(path: Path) -> Json:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=refuse)
        if not isinstance(value, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise NetworkImportError(
            f"cannot be read as a card: {reason}",
            where=str(path),
            remedy="weights/FORMAT.md says what is in a card",
        ) from error
    return value


def read_card(path: Path) -> Stated:
    """Read a card file and check the keys that mean something here."""
    card = _read_json(path)
    for key, (good, want) in _CARD_RULES.items():
        if key in card and not good(card[key]):
            raise NetworkImportError(
                f"{key!r} is {card[key]!r}", where=str(path), remedy=f"it has to be {want}"
            )
    stated = Stated()
    for key, ports in (("inputs", stated.inputs), ("outputs", stated.outputs)):
        ports += [card_port(port, f"{path}: {key}") for port in card.pop(key, [])]
    if "patch_size" in card:
        x, y, z = card.pop("patch_size")
        stated.patch_size = (x, y, z)
    if "voxel_size_mm" in card:
        size = card.pop("voxel_size_mm")
        stated.voxel_size_stated = True
        stated.voxel_size_mm = (size[0], size[1], size[2]) if size else None
    stated.spatial_axes = card.pop("spatial_axes", "")
    stated.orientation = card.pop("orientation", "")
    stated.card = card
    return stated


def unknown_keys(stated: Stated) -> list[str]:
    """Return a note on what the card has beside the keys that mean something; it is kept."""
    strange = [key for key in stated.card if key not in _CARD_RULES]
    return [f"keys of the card that are kept, but mean nothing: {', '.join(strange)}"] * bool(
        strange
    )


def _text_of(value: str, option: str) -> str:
    """Return an option's text, read from a file where it is @FILE."""
    if value.startswith("@"):
        try:
            value = Path(value[1:]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"cannot be read for {option}: {reason}", where=value[1:]) from error
    if not value.strip():
        raise UsageError(f"{option} is empty", remedy="it has to be a text")
    return value


def _triple(text: str, option: str, kind: Callable[[str], Any], good: Callable[[Any], bool]) -> Any:  # noqa: ANN401
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        values = ()
    values = values * 3 if len(values) == 1 else values
    if not good(values):
        raise usage_fault(option, text, "X,Y,Z, such as 32,32,32, or one number for all")
    return values


def _give_steps(ports: list[StatedPort], given: Sequence[str], option: str) -> None:
    """Put the intensity steps of options to their ports, in the order in which they are given."""
    steps_of: dict[str, list[Json]] = {}
    for text in given:
        name, steps = parse_steps(text, option)
        names = [port.name for port in ports]
        if (name or len(ports) != 1) and name not in names:
            known = ", ".join(names) or "none is stated"
            raise usage_fault(option, text, f"PORT: and steps; the ports are: {known}")
        steps_of.setdefault(name or names[0], []).extend(steps)
    for index, port in enumerate(ports):
        if port.name in steps_of:
            ports[index] = replace(port, steps=tuple(steps_of[port.name]))


def _state_ports(stated: Stated, options: argparse.Namespace) -> None:
    if options.quantity or options.unit:
        if options.input or not options.quantity:
            raise UsageError(
                "--quantity with --unit states the only input of a network",
                remedy="state several by --input, once each, and nothing by --quantity and --unit",
            )
        text = f"{options.quantity}:{options.unit or ''}"
        stated.inputs = [parse_port(text, "--quantity")]
    if options.input:
        stated.inputs = [parse_port(text, "--input") for text in options.input]
    if options.output:
        stated.outputs = [parse_port(text, "--output") for text in options.output]
    _give_steps(stated.inputs, options.input_intensity, "--input-intensity")
    _give_steps(stated.outputs, options.output_intensity, "--output-intensity")


def stated_by(options: argparse.Namespace) -> Stated:
    """Return what card file and options state together."""
    stated = read_card(options.card) if options.card else Stated()
    _state_ports(stated, options)
    if options.patch:
        stated.patch_size = _triple(options.patch, "--patch", int, _is_patch)
    if options.voxel_size:
        stated.voxel_size_stated = True
        stated.voxel_size_mm = None
        if options.voxel_size != "pet":
            triple = _triple(options.voxel_size, "--voxel-size", float, _is_voxel_size)
            stated.voxel_size_mm = triple
    stated.spatial_axes = options.spatial_axes or stated.spatial_axes
    stated.orientation = options.orientation or stated.orientation
    if stated.orientation not in ("", "stored", *ORIENTATIONS):
        raise usage_fault("--orientation", stated.orientation, "RAS, LPS, ..., or stored")
    for key in (*_CARD_TEXTS, "training"):
        if getattr(options, key) is not None:
            stated.card[key] = _text_of(getattr(options, key), f"--{key}")
    for key in ("references", "limitations"):
        if given := getattr(options, key):
            texts = [_text_of(text, f"--{key}") for text in given]
            stated.card[key] = texts if len(texts) > 1 else texts[0]
    if options.trained:
        stated.card["trained"] = options.trained == "yes"
    if options.skip_air:
        try:
            value = None if options.skip_air == "off" else float(options.skip_air)
        except ValueError:
            value = float("nan")
        if value is not None and not is_number(value):
            raise usage_fault("--skip-air", options.skip_air, "a number of the quantity, or off")
        stated.card["skip_air"] = value
    return stated


def _channels_text(tensors: Sequence[SourceTensor]) -> str:
    known = [f"{tensor.text()}" for tensor in tensors]
    return f"one for each channel of {'; '.join(known)}" if known else "one for each channel"


def missing(
    stated: Stated, inputs: Sequence[SourceTensor], outputs: Sequence[SourceTensor]
) -> list[tuple[str, str]]:
    """Return options that are still needed, with the values that they may have."""
    found: list[tuple[str, str]] = []

    def ask(absent: object, option: str, values: str) -> None:
        if absent:
            found.append((option, values))

    ask(not stated.inputs, f"--input {PORT_FORM}", f"{_channels_text(inputs)}; {_QUANTITIES}")
    ask(
        not stated.outputs,
        f"--output {PORT_FORM}",
        f"{_channels_text(outputs)}; such as dose_per_activity:Gy/GBq or mGy/MBq",
    )
    ask(
        not stated.spatial_axes,
        "--spatial-axes xyz|zyx",
        "the first spatial axis of its tensors: xyz as nibabel and MONAI load, zyx as SimpleITK"
        " and nnU-Net do",
    )
    ask(
        not stated.orientation,
        "--orientation CODE",
        "where x, y, z of its training images pointed: RAS, LPS, ..., or stored (no common one)",
    )
    ask(
        not stated.patch_size and fixed_size(inputs) is None,
        "--patch X,Y,Z",
        f"voxels of a training patch, 1 to {MAX_PATCH} each",
    )
    ask(
        not stated.voxel_size_stated,
        "--voxel-size X,Y,Z|pet",
        "mm of the training images; pet: the network runs on each PET's own grid",
    )
    for key, values in _CARD_TEXTS.items():
        ask(key not in stated.card, f"--{key} TEXT", values)
    ask("trained" not in stated.card, "--trained yes|no", "no: constructed or random weights")
    ask(
        stated.card.get("trained") and "training" not in stated.card,
        "--training TEXT|@FILE",
        "data, method and results of the training",
    )
    return found


def fixed_size(inputs: Sequence[SourceTensor]) -> tuple[int, int, int] | None:
    """Return the spatial size of the inputs in the network's axes, where the file fixes it."""
    sizes = {tensor.shape[2:] if tensor.shape else () for tensor in inputs}
    size = next(iter(sizes)) if len(sizes) == 1 else ()
    if len(size) != 3 or not all(isinstance(n, int) for n in size):
        return None
    return (size[0] or 0, size[1] or 0, size[2] or 0)


def statement_of(
    stated: Stated, inputs: Sequence[SourceTensor], outputs: Sequence[SourceTensor]
) -> tuple[Statement, list[str]]:
    """Return the statement, once nothing is missing, and notes for people."""
    in_ports, notes = graph_ports(stated.inputs, inputs, "--input")
    out_ports, more = graph_ports(stated.outputs, outputs, "--output")
    patch = stated.patch_size
    if patch is None:
        a, b, c = fixed_size(inputs) or (0, 0, 0)
        patch = (a, b, c) if stated.spatial_axes == "xyz" else (c, b, a)
    statement = Statement(
        name=stated.card["name"],
        patch_size=patch,
        spatial_axes=stated.spatial_axes,
        orientation=stated.orientation,
        inputs=in_ports,
        outputs=out_ports,
        voxel_size_mm=stated.voxel_size_mm,
    )
    return statement, notes + more


def card_of(stated: Stated) -> Json:
    """Return the model card as it goes into the file, without what the import adds."""
    return {"skip_air": None, **stated.card}
