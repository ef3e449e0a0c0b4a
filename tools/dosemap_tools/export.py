# SPDX-License-Identifier: Apache-2.0
r"""Makes a weights file from the PyTorch state dict of one of the networks in models/.

    python -m dosemap_tools.export --network dosegan --state-dict trained.pt --card card.json \
        -o dosegan-trained.safetensors.zst

The state dict is a `.pt` file, loaded without executing anything in it, or a `.safetensors` file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from dosemap_tools import __version__, weights_file

if TYPE_CHECKING:
    from torch import Tensor, nn

Json = dict[str, Any]
NETWORKS_FOLDER = Path(__file__).parent / "networks"
_NOT_WEIGHTS = ".num_batches_tracked"  # a counter that BatchNorm keeps for training


class ExportError(ValueError):
    """The state dict or the card does not fit."""


def network_names() -> list[str]:
    """Return the networks that have a definition."""
    return sorted(path.stem for path in NETWORKS_FOLDER.glob("*.json"))


def network_graph(name: str) -> Json:
    """Return the graph of a network of models/."""
    path = NETWORKS_FOLDER / f"{name}.json"
    if not path.is_file():
        raise ExportError(f"there is no network {name!r}; choose one of {network_names()}")
    return json.loads(path.read_text())


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict; a checkpoint that holds one under `state_dict` is accepted too."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ExportError(f"{path}: cannot be read as a state dict: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(hasattr(v, "shape") for v in content.values()):
        raise ExportError(
            f"{path}: holds no state dict; save it with torch.save(m.state_dict(), …)"
        )
    return content


def check_state_dict(state: Mapping[str, Tensor], module: nn.Module, source: str) -> None:
    """Raise an error that lists every tensor that is missing, unexpected or of another shape."""
    want = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    have = {k: tuple(v.shape) for k, v in state.items()}
    needed = {k for k in want if not k.endswith(_NOT_WEIGHTS)}
    faults = [f"missing: {k} {want[k]}" for k in sorted(needed - have.keys())]
    faults += [f"unexpected: {k} {have[k]}" for k in sorted(have.keys() - want.keys())]
    faults += [
        f"shape of {k}: {have[k]}, expected {want[k]}"
        for k in sorted(needed & have.keys())
        if have[k] != want[k]
    ]
    if faults:
        shown = "\n  ".join(faults[:20]) + (
            f"\n  … and {len(faults) - 20} more" * (len(faults) > 20)
        )
        raise ExportError(f"{source}: does not fit the network:\n  {shown}")


def tensors_for(graph: Json, state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return the weights that `graph` names, as float32 arrays in the shapes of the format."""
    made = {port["name"] for port in graph["inputs"]}
    made |= {output for node in graph["nodes"] for output in node["outputs"]}
    tensors: dict[str, np.ndarray] = {}
    for node in graph["nodes"]:
        for name in (n for n in node["inputs"] if n and n not in made):
            values = state[name].detach().cpu().float().numpy()
            if node["op"] == "PRelu" and values.size > 1:
                values = values.reshape(-1, 1, 1, 1)  # one slope per channel, broadcast over space
            tensors[name] = values
    return tensors


def read_card(path: Path) -> Json:
    """Read a model card and check the keys that the program reads."""
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: cannot be read as JSON: {error}") from error
    kinds = {"name": str, "version": str, "summary": str, "licence": str, "trained": bool}
    for key, kind in kinds.items():
        if not isinstance(card, dict) or not isinstance(card.get(key), kind):
            raise ExportError(
                f"{path}: the card needs {key!r} ({kind.__name__}); see weights/FORMAT.md"
            )
    return card


def file_checksum(path: Path) -> str:
    """Return the XXH64 of a file, 16 hexadecimal digits."""
    digest = xxhash.xxh64(seed=0)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def export(network: str, state_path: Path, card_path: Path, out: Path, dtype: str = "F32") -> None:
    """Write the weights file of `network` with the weights in `state_path`."""
    import torch

    from dosemap_tools.networks.generator import NETWORKS, Generator

    graph = network_graph(network)
    state = load_state_dict(state_path)
    check_state_dict(state, Generator(NETWORKS[network]), str(state_path))
    provenance = {
        "made_by": f"dosemap_tools.export {__version__}",
        "network": network,
        "source": {"file": state_path.name, "xxh64": file_checksum(state_path)},
        "torch": torch.__version__,
        "dtype": dtype,
    }
    weights_file.write(
        out, graph, read_card(card_path), provenance, tensors_for(graph, state), dtype
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 done, 1 failed."""
    parser = argparse.ArgumentParser(prog="dosemap-export", description=__doc__.split("\n")[0])
    parser.add_argument("--network", required=True, choices=network_names())
    parser.add_argument("--state-dict", required=True, type=Path, help=".pt or .safetensors")
    parser.add_argument("--card", required=True, type=Path, help="the model card, JSON")
    parser.add_argument("--dtype", default="F32", choices=["F32", "F16", "BF16"])
    parser.add_argument("-o", "--output", required=True, type=Path)
    options = parser.parse_args(arguments)
    try:
        export(options.network, options.state_dict, options.card, options.output, options.dtype)
    except (ExportError, weights_file.WeightsFileError, OSError) as error:
        print(f"dosemap-export: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
