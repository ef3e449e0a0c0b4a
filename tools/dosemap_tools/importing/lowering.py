# SPDX-License-Identifier: Apache-2.0
"""What the rules of lower.py work with: one ONNX node, its inputs, and the graph that is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from dosemap_tools.importing.graph_builder import (
    GraphBuilder,
    Made,
    attribute_number,
    node_label,
    plain_shape,
    source_line,
)
from dosemap_tools.importing.network import Json, NetworkImportError

Rule = Callable[["Step"], "Made | list[Made | None]"]


class Rules(dict[str, Rule]):
    """Part of the table from ONNX operators to what lowers them."""

    def lowers(self, *operators: str) -> Callable[[Rule], Rule]:
        """Enter a function as the rule of these operators."""

        def enter(rule: Rule) -> Rule:
            self.update(dict.fromkeys(operators, rule))
            return rule

        return enter


class Step:
    """One node of the network on its way into the graph."""

    def __init__(self, node: ir.Node, builder: GraphBuilder, opset: int) -> None:
        self.node, self.builder, self.opset = node, builder, opset
        self.label, self.value_label = node_label(node)

    def fail(self, what: str, remedy: str) -> NoReturn:
        """Refuse the node."""
        raise NetworkImportError(
            what,
            where=f"{self.builder.where}: node '{self.label}' ({self.node.op_type})",
            source=source_line(self.node),
            remedy=remedy,
        )

    # Attributes and inputs

    def attribute(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        """Return an attribute's value, or the default where it is left out."""
        found = self.node.attributes.get(name)
        return default if found is None or found.value is None else found.value

    def number(self, name: str, default: float) -> float:
        """Return a float attribute with the fewest digits that mean it."""
        return attribute_number(self.attribute(name, default))

    def input(self, index: int) -> ir.Value | None:
        """Return an input; None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def is_constant(self, index: int) -> bool:
        """Tell whether an input is a constant of the network."""
        value = self.input(index)
        return value is not None and value.const_value is not None

    def constant(self, index: int, name: str) -> np.ndarray | None:
        """Return the value of an input that must be constant, None where it is left out."""
        value = self.input(index)
        if value is None:
            return None
        if value.const_value is None:
            self.fail(
                f"its {name} '{value.name}' is computed by the network",
                f"export the network again so that {name} is a constant",
            )
        return value.const_value.numpy()

    def integers(self, name: str, index: int) -> list[int] | None:
        """Return integers that older versions have as an attribute, newer ones as an input."""
        found = self.attribute(name)
        if found is None:
            found = self.constant(index, name)
        return None if found is None else [int(v) for v in np.atleast_1d(found)]

    def shape(self, index: int) -> tuple[int, ...]:
        """Return the shape of an input as the network has it."""
        value = self.input(index)
        if value is None:
            self.fail(f"its input {index + 1} is missing", "export the network again")
        return self.builder.shape(value)

    def any_axes(self, index: int = 0) -> Made:
        """Return a computed input, whatever axes the network sees it in."""
        value = self.input(index)
        if value is None:
            self.fail(f"its input {index + 1} is missing", "export the network again")
        made = self.builder.made(value)
        if made is None:
            size = list(self.shape(index))
            self.fail(
                f"its input '{value.name}' {size} is a constant, or made of constants alone",
                "the graph computes from the network's inputs; a constant can be added or "
                "multiplied, one value or one per channel",
            )
        return made

    def data(self, index: int = 0) -> Made:
        """Return a computed input with the axes (N, C, a, b, c), or (N, C) for a single voxel."""
        made, shape = self.any_axes(index), self.shape(index)
        if plain_shape(shape) == made.shape:
            return made
        by = f" by '{made.reshaped_by}'" if made.reshaped_by else ""
        self.fail(
            f"its input has the shape {list(shape)}, made{by} of {list(made.shape)}",
            "the graph has five axes, (N, C, a, b, c), throughout; write the network without "
            "reshaping them, with Conv3d where it moves channels",
        )

    def parameter(self, index: int, role: str) -> tuple[str, np.ndarray]:
        """Return name and float32 values of a constant input; role: what it is to the node."""
        value = self.input(index)
        if value is None or value.const_value is None:
            name = f" '{value.name}'" if value is not None else ""
            self.fail(
                f"its weight{name} is missing, or computed by the network",
                "the graph has constant weights only; fix them before the export",
            )
        return self.builder.parameter(value, f"{self.label}.{role}")

    def weight(self, index: int, role: str, shape: Sequence[int] | None = None) -> str:
        """Add a constant input to the weights and return its name there.

        shape: what the graph needs, of as many elements.
        """
        name, array = self.parameter(index, role)
        if shape is not None:
            if array.size != np.prod(shape, dtype=np.int64):
                self.fail(
                    f"its weight '{name}' has shape {list(array.shape)}; {list(shape)} is needed",
                    "export the network again",
                )
            array = array.reshape(shape)
        return self.builder.add_weight(name, array)

    def new_constant(self, word: str, values: Any) -> str:  # noqa: ANN401
        """Add a constant of our own, named after the node, and return its name."""
        return self.builder.add_weight(f"{self.label}.{word}", np.asarray(values, np.float32))

    # Outputs

    def output_shape(self, index: int = 0) -> tuple[int, ...]:
        """Return the shape of an output as the network has it."""
        return self.builder.shape(self.node.outputs[index])

    def emit(
        self,
        op: str,
        inputs: Sequence[str],
        shape: Sequence[int] | None = None,
        attributes: Json | None = None,
        *,
        part: str = "",
        like: Made | None = None,
    ) -> Made:
        """Add a node of the graph. Its shape is that of the ONNX node's output unless given.

        part: what a node does that is not the last of several for one ONNX node. like: the input
        whose axes the output has.
        """
        if like is not None:
            shape = like.shape
        elif shape is None:
            shape = plain_shape(self.output_shape())
            if shape is None:
                self.fail(
                    f"its output has the shape {list(self.output_shape())}",
                    "the graph has five axes, (N, C, a, b, c); networks for 2-D slices and "
                    "sequences cannot be imported",
                )
        dot = f".{part}" if part else ""
        made = self.builder.append(
            op,
            self.label + dot,
            inputs,
            shape,
            attributes,
            value_name=(self.value_label + dot).replace(".", "_") if part else self.value_label,
        )
        return Made(made.name, made.shape, like.reshaped_by if like else "")

    def with_scalar(self, op: str, made: Made, scalar: float, word: str) -> Made:
        """Add, multiply or subtract one number."""
        constant = self.new_constant(word, scalar)
        return self.emit(op, [made.name, constant], like=made)


def without_defaults(attributes: Json, defaults: Json) -> Json:
    """Return the attributes that differ from what the format takes for granted."""
    return {key: value for key, value in attributes.items() if value != defaults.get(key)}
