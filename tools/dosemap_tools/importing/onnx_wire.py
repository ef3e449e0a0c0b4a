# SPDX-License-Identifier: Apache-2.0
"""Takes the big tensors out of an ONNX file before protobuf parses it.

Protobuf copies a file while it parses it and needs many times its size for a file of many small
parts. So the file is first walked as it lies, without building anything: lengths have to be right,
the number of parts and their depth are limited, and the data of tensors are replaced by where they
lie in the file, in the words that ONNX has for external data (location "": this file).
"""

from __future__ import annotations

import mmap
from typing import Any

import onnx

MAX_FIELDS = 1_000_000  # FlexibleUNet with EfficientNet, all stack traces in it: 17,000
MAX_DEPTH = 48  # messages in messages; a subgraph takes three levels
MAX_KEPT_BYTES = 64 << 20  # of everything but the tensors' data
BIG = 1024  # smaller data stay where they are

# Fields of TensorProto whose bytes in the file are the values themselves, little-endian.
_PLAIN_FIELDS = {4: "float_data", 9: "raw_data", 10: "double_data"}
_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are no protobuf message, or one that is larger than any network needs."""


def _message_fields() -> dict[str, dict[int, str]]:
    """Return which fields of each kind of message are messages, and of what kind."""
    table: dict[str, dict[int, str]] = {}
    waiting: list[Any] = [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        kind = waiting.pop()
        if kind.full_name in table:
            continue
        inner = {f.number: f.message_type for f in kind.fields if f.message_type is not None}
        table[kind.full_name] = {number: message.full_name for number, message in inner.items()}
        waiting.extend(inner.values())
    return table


_FIELDS = _message_fields()
_MODEL = onnx.ModelProto.DESCRIPTOR.full_name
_TENSOR = onnx.TensorProto.DESCRIPTOR.full_name


def encode_varint(value: int) -> bytes:
    """Return a number as protobuf writes it: seven bits a byte, the last without the top bit."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _reference(field: str, offset: int, length: int) -> bytes:
    """Return what stands in a tensor instead of its data."""
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", ""), ("offset", offset), ("length", length), ("field", field)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor.SerializeToString()


class _Walk:
    def __init__(self, data: bytes | mmap.mmap) -> None:
        self.data = data
        self.fields = 0
        self.kept = 0

    def varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        raise WireError(f"the number at byte {at} does not end")

    def past(self, wire_type: int, at: int, end: int) -> tuple[int, int]:
        """Return where the value of a field begins (behind its length) and ends."""
        if wire_type == _VARINT:
            return at, self.varint(at, end)[1]
        if wire_type == _LENGTH:
            length, begin = self.varint(at, end)
        elif wire_type in (_EIGHT, _FOUR):
            length, begin = 8 if wire_type == _EIGHT else 4, at
        else:
            raise WireError(f"there is no field of type {wire_type}, as byte {at} claims")
        if length > end - begin:
            raise WireError(f"{length} bytes are claimed at byte {at}; {end - begin} are left")
        return begin, begin + length

    def stripped(self, kind: str, begin: int, end: int, depth: int) -> bytes:
        """Return the message between two bytes without the data of big tensors."""
        if depth > MAX_DEPTH:
            raise WireError(f"at byte {begin} are more than {MAX_DEPTH} parts inside each other")
        messages, out, at = _FIELDS[kind], bytearray(), begin
        while at < end:
            self.fields += 1
            if self.fields > MAX_FIELDS:
                raise WireError(f"it has more than {MAX_FIELDS} parts")
            field_at = at
            tag, at = self.varint(at, end)
            number, wire_type = tag >> 3, tag & 7
            if number == 0:
                raise WireError(f"byte {field_at} begins no field")
            value, at = self.past(wire_type, at, end)
            if wire_type == _LENGTH and number in messages:
                inner = self.stripped(messages[number], value, at, depth + 1)
                out += encode_varint(tag) + encode_varint(len(inner)) + inner
            elif (
                kind == _TENSOR
                and wire_type == _LENGTH
                and number in _PLAIN_FIELDS
                and at - value >= BIG
            ):
                out += _reference(_PLAIN_FIELDS[number], value, at - value)
            else:
                self.kept += at - field_at
                if self.kept > MAX_KEPT_BYTES:
                    raise WireError(f"it has more than {MAX_KEPT_BYTES} bytes beside raw tensors")
                out += self.data[field_at:at]
        return bytes(out)


def without_big_tensors(data: bytes | mmap.mmap) -> bytes:
    """Return a serialised model whose big tensors say where in `data` they lie."""
    return _Walk(data).stripped(_MODEL, 0, len(data), 0)
