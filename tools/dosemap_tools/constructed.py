# SPDX-License-Identifier: Apache-2.0
r"""Constructs the weights that dosemap ships: a plain scaling of the PET, run through the network.

    python -m dosemap_tools.constructed --network dosegan \
        -o weights/dosegan-constructed.safetensors.zst

Nothing is trained. The weights make the network return max(0, k*u) for an uptake u, so every
layer, skip connection and attention gate runs, and the result is known in closed form:

* The uptake travels in channel 0 at full resolution. Each convolution on that way has one weight of
  1, at its centre. LeakyReLU scales negative values but keeps their sign, and the ReLU at the end
  turns them into 0.
* BatchNorm is the identity: mean 0, scale 1, shift 0, and variance 1 - epsilon.
* Attention gates are open: psi has a bias of 100, whose sigmoid is exactly 1 in float32.
* All other weights are 0: the coarser levels compute, and contribute 0.
* k is the sum of three weights of the last convolution, each of which bfloat16 holds exactly. A
  single weight would be rounded, and so be off by 0.08 % everywhere, in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dosemap_tools import __version__, weights_file

Json = dict[str, Any]
NETWORKS_FOLDER = Path(__file__).parent / "networks"
CHANNELS = {"dosegan": (32, 64, 128, 256), "dosegan-16": (16, 32, 64, 128)}
GY_PER_GBQ_PER_UPTAKE = 0.027
OPEN_GATE = 100.0


def _out_channels(convolution: str, channels: tuple[int, ...]) -> int:
    part, *rest = convolution.split(".")
    if part == "head" or rest[-1] == "psi":
        return 1
    level = int(rest[0])
    if part == "down":
        return channels[level + 1]
    return channels[level] // 2 if part == "gate" else channels[level]


def weight_shapes(graph: Json, channels: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a `dosegan` graph, following the channels through it."""
    width = {port["name"]: port["channels"] for port in graph["inputs"]}
    shapes: dict[str, tuple[int, ...]] = {}
    for node in graph["nodes"]:
        known = [width[name] for name in node["inputs"] if name in width]
        weights = [name for name in node["inputs"] if name not in width]
        out = sum(known) if node["op"] == "Concat" else max(known)
        if node["op"] in ("Conv", "ConvTranspose"):
            inner = known[0]
            out = _out_channels(node["name"].removesuffix(".conv"), channels)
            pair = (out, inner) if node["op"] == "Conv" else (inner, out)
            shapes[weights[0]] = (*pair, *node["attributes"]["kernel_shape"])
            weights = weights[1:]
        shapes |= dict.fromkeys(weights, (out,))
        width[node["outputs"][0]] = out
    return shapes


def bf16_parts(value: float, count: int = 3) -> list[np.float32]:
    """Split a number into float32 parts that bfloat16 holds exactly and that add up to it."""
    parts: list[np.float32] = []
    rest = float(np.float32(value))
    for _ in range(count):
        bits = weights_file.to_bf16_bits(np.array([rest], np.float32))
        parts.append(weights_file.from_bf16_bits(bits)[0])
        rest -= float(parts[-1])
    return parts


def tensors(graph: Json, channels: tuple[int, ...], k: float) -> dict[str, np.ndarray]:
    """Return weights with which the network of `graph` computes max(0, k*u)."""
    weights = {n: np.zeros(s, np.float32) for n, s in weight_shapes(graph, channels).items()}
    for node in graph["nodes"]:
        if node["op"] == "BatchNormalization":
            scale, _, _, variance = node["inputs"][1:]
            weights[scale][:] = 1.0
            weights[variance][:] = np.float32(1.0 - node["attributes"]["epsilon"])
    for name in ("encoder.0.0", "encoder.0.1", "decoder.0.0"):
        weights[f"{name}.conv.weight"][0, 0, 1, 1, 1] = 1.0
    for level in range(len(channels) - 1):
        weights[f"gate.{level}.psi.bias"][:] = OPEN_GATE
    parts = bf16_parts(k)
    weights["decoder.0.1.conv.weight"][: len(parts), 0, 1, 1, 1] = 1.0
    weights["head.weight"][0, : len(parts), 0, 0, 0] = parts
    return weights


def card(network: str) -> Json:
    """Return the model card."""
    return {
        "name": f"{network}-constructed",
        "version": "1",
        "summary": "CONSTRUCTED, NOT TRAINED: a plain scaling of the PET, dose = max(0, 0.027 *"
        " uptake) Gy/GBq, run through every layer of the network. For research, not for clinical"
        " decisions.",
        "licence": "Apache-2.0",
        "trained": False,
        # Off: any threshold above 0 would replace small doses by 0, and max(0, k*u) is meant
        # exactly.
        "skip_air": None,
        "derivation": [
            "k = 0.027 Gy/GBq per unit of uptake, where uptake is SUV normalised to a body weight"
            " of 78.7 kg (concentration / injected activity * 78.7 kg); dose scales with that, not"
            " with SUV.",
            "k is a population factor that fits two organs: kidney 0.72 Gy/GBq (Okamoto 2017) at"
            " SUV 26.0 (Gafita 2022) gives 0.0277; liver 0.10 Gy/GBq (assumed; Okamoto 2017 has"
            " 0.12) at SUV 3.7 (Gafita 2022) gives 0.0270. That one factor holds for every voxel"
            " is assumed.",
            "The uptake is carried unchanged through channel 0 at full resolution; BatchNorm is the"
            " identity, attention gates are saturated open, coarser levels contribute 0.",
        ],
        "training": "None.",
        # Not under `precision`, which would let `--precision auto` choose bf16.
        "measured": "bf16 against float32 on the phantom of tools/make_example (overlap 0): organ"
        " mean doses deviate by at most 0.026 %, voxels by up to 0.4 %. --precision auto stays in"
        " float32, in which max(0, k*u) holds voxel by voxel.",
        "limitations": [
            "Knows nothing of retention or effective half-life, which differ between organs and"
            " are not in the PET. Against published organ means it gives half the dose of the"
            " salivary glands, 1.4 to 2.4 times that of the spleen, and a fifth or less of that of"
            " tumours.",
            "Deposits dose where the PET shows uptake: no beta range, no photon cross-dose, no"
            " density.",
            "Not the published 3D RPT DoseGAN and not comparable with it.",
            "For research; not for clinical decisions.",
        ],
        "references": [
            "Gafita et al. 2022: 68Ga-PSMA-11 SUVmean of 406 patients",
            "Okamoto et al. 2017: 177Lu-PSMA I&T organ doses",
            "Xue et al. 2024: 3D RPT DoseGAN, the family of this network",
        ],
    }


def contents(network: str) -> tuple[Json, Json, Json, dict[str, np.ndarray]]:
    """Return graph, card, provenance and tensors of a network's constructed weights."""
    graph = json.loads((NETWORKS_FOLDER / f"{network}.json").read_text())
    provenance = {
        "made_by": f"dosemap_tools.constructed {__version__}",
        "command": f"python -m dosemap_tools.constructed --network {network}",
    }
    weights = tensors(graph, CHANNELS[network], GY_PER_GBQ_PER_UPTAKE)
    return graph, card(network), provenance, weights


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 done, 1 failed."""
    parser = argparse.ArgumentParser(prog="dosemap-construct", description=__doc__.split("\n")[0])
    parser.add_argument("--network", required=True, choices=sorted(CHANNELS))
    parser.add_argument("-o", "--output", required=True, type=Path)
    options = parser.parse_args(arguments)
    try:
        weights_file.write(options.output, *contents(options.network))
    except OSError as error:
        print(f"dosemap-construct: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
