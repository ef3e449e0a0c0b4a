# SPDX-License-Identifier: Apache-2.0
"""Writes the graphs of models/ from the PyTorch modules: `python -m dosemap_tools.make_graphs`."""

from __future__ import annotations

from dosemap_tools.export import NETWORKS_FOLDER
from dosemap_tools.graph import graph_of, graph_text
from dosemap_tools.networks.generator import NETWORKS, Generator


def graph_files() -> dict[str, str]:
    """Return file name and content of each network's graph."""
    return {
        f"{name}.json": graph_text(graph_of(Generator(config), name))
        for name, config in NETWORKS.items()
    }


if __name__ == "__main__":
    for file_name, text in graph_files().items():
        (NETWORKS_FOLDER / file_name).write_text(text)
