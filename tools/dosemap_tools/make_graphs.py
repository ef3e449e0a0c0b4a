# SPDX-License-Identifier: Apache-2.0
"""Writes the graphs of models/ from the PyTorch modules: `python -m dosemap_tools.make_graphs`.

They are made as any network is imported: traced, translated to ONNX, converted.
"""

from __future__ import annotations

import json
from typing import Any

from dosemap_tools.importing.convert import convert
from dosemap_tools.importing.network import UNITS, Port, Statement
from dosemap_tools.importing.torch_network import NETWORKS_FOLDER, export_program, to_onnx
from dosemap_tools.networks.generator import NETWORKS, Generator

PET = Port("pet", "uptake", UNITS["uptake"])
DOSE = Port("dose", "dose_per_activity", UNITS["dose_per_activity"])


def network_graph(name: str) -> dict[str, Any]:
    """Return the graph of a network of models/."""
    statement = Statement(name, (32, 32, 32), "xyz", "RAS", (PET,), (DOSE,))
    program, _ = export_program(Generator(NETWORKS[name]), [1], statement)
    return convert(to_onnx(program, name), statement, name).graph


def graph_text(graph: dict[str, Any]) -> str:
    """Return a graph as JSON for people: one line per key, port and node."""
    lines = []
    for key, value in graph.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            items = ",\n".join("    " + json.dumps(item) for item in value)
            lines.append(f'  "{key}": [\n{items}\n  ]')
        else:
            lines.append(f'  "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def graph_files() -> dict[str, str]:
    """Return file name and content of each network's graph."""
    return {f"{name}.json": graph_text(network_graph(name)) for name in NETWORKS}


if __name__ == "__main__":
    for file_name, text in graph_files().items():
        (NETWORKS_FOLDER / file_name).write_text(text)
