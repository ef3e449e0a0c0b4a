# SPDX-License-Identifier: Apache-2.0
"""A network from PET and CT whose result is known."""

from pathlib import Path

import numpy as np
from dosemap_tools import weights_file

CARD = {"name": "pet-ct", "version": "1", "summary": "A test.", "licence": "Apache-2.0",
        "trained": False, "skip_air": None}  # fmt: skip


def write_pet_ct_model(path: Path, other_output: bool = False) -> Path:
    """dose = 0.5 PET + (HU / 1000 + 1); if asked for, its tanh as an output before it."""

    def port(name: str, quantity: str, unit: str, *intensity: dict) -> dict:
        return {"name": name, "quantity": quantity, "unit": unit, "channels": 1,
                "intensity": list(intensity)}  # fmt: skip

    graph = {
        "graph_version": 1,
        "name": "pet-ct",
        "spatial_axes": "xyz",
        "orientation": "RAS",
        "patch_size": [8, 8, 8],
        "voxel_size_mm": None,
        "inputs": [
            port("pet", "uptake", "g/mL"),
            port("ct", "hu", "HU", {"scale": 0.001, "offset": 1.0}),
        ],
        "outputs": [port("dose", "dose_per_activity", "Gy/GBq")],
        "nodes": [
            {"op": "Concat", "name": "j", "inputs": ["pet", "ct"], "outputs": ["both"],
             "attributes": {"axis": 1}},
            {"op": "Conv", "name": "c", "inputs": ["both", "w"], "outputs": ["dose"],
             "attributes": {"kernel_shape": [1, 1, 1]}},
        ],
    }  # fmt: skip
    if other_output:
        graph["nodes"].append(
            {"op": "Tanh", "name": "t", "inputs": ["dose"], "outputs": ["certainty"]}
        )
        graph["outputs"].insert(0, port("certainty", "other", "1"))
    weights = {"w": np.array([0.5, 1.0], np.float32).reshape(1, 2, 1, 1, 1)}
    weights_file.write(path, graph, CARD, {"made_by": "tests"}, weights)
    return path
