# SPDX-License-Identifier: Apache-2.0
"""A network from PET and CT, with odd numbers of channels and a second output, against MONAI."""

import numpy as np
import pytest

pytest.importorskip("monai", reason="PyTorch and MONAI are missing: peers are not compared")

import torch
from dosemap_tools import nifti, weights_file
from images import RAS_AFFINE, back_from, stored_as, uptake
from make_test_models import CARD
from peer import sliding_window
from program import assert_close, predict, relative_l2
from torch.nn import functional as F

FLOAT32, BF16 = 1e-5, 2e-2
TILE = (16, 24, 32)
SHAPES = {
    "in.weight": (5, 2, 3, 3, 3),
    "in.bias": (5,),
    "down.weight": (7, 5, 2, 2, 2),
    "up.weight": (7, 3, 2, 2, 2),
    "join.weight": (9, 10, 3, 3, 3),
    "out.weight": (1, 9, 1, 1, 1),
    "out.bias": (1,),
}
SEEN = {  # what the network sees of uptake and HU
    "pet": [{"log1p": True}, {"scale": 0.8, "offset": -0.3}],
    "ct": [{"clip": [-1000.0, 1500.0]}, {"scale": 0.001, "offset": 0.1}],
}


def random_weights(seed):
    rng = np.random.default_rng(seed)
    scale = {name: np.sqrt(2 / max(np.prod(s[1:]), 8)) for name, s in SHAPES.items()}
    return {n: rng.normal(0, scale[n], s).astype(np.float32) for n, s in SHAPES.items()}


def network(weights):
    """Return the forward pass to the dose; `low` is the second output, of half the size."""
    w = {name: torch.from_numpy(array) for name, array in weights.items()}

    def forward(x):
        high = F.leaky_relu(F.conv3d(x, w["in.weight"], w["in.bias"], padding=1), 0.2)
        low = F.relu(F.conv3d(high, w["down.weight"], stride=2))
        up = F.conv_transpose3d(low, w["up.weight"], stride=2)
        joined = F.elu(F.conv3d(torch.cat([up, high, x], 1), w["join.weight"], padding=1))
        return F.conv3d(joined, w["out.weight"], w["out.bias"])

    return forward


def node(op, name, inputs, **attributes):
    return {"op": op, "name": f"n.{name}", "inputs": inputs.split(), "outputs": [name],
            "attributes": attributes}  # fmt: skip


def write_model(path, weights, ports, axes):
    """Ports in the order of the channels of the input tensor."""
    three, two = [3, 3, 3], [2, 2, 2]
    units = {"pet": ("uptake", "g/mL"), "ct": ("hu", "HU")}
    graph = {
        "graph_version": 1,
        "name": "pet-ct",
        "spatial_axes": axes,
        "orientation": "RAS",
        "patch_size": list(TILE),
        "voxel_size_mm": None,
        "inputs": [
            {"name": p, "quantity": units[p][0], "unit": units[p][1], "channels": 1,
             "intensity": SEEN[p]} for p in ports
        ],
        "outputs": [
            {"name": "low", "quantity": "other", "unit": "1", "channels": 7, "intensity": []},
            {"name": "dose", "quantity": "dose_per_activity", "unit": "Gy/GBq", "channels": 1,
             "intensity": []},
        ],
        "nodes": [
            node("Concat", "x", " ".join(ports), axis=1),
            node("Conv", "a", "x in.weight in.bias", kernel_shape=three, pads=[1] * 6),
            node("LeakyRelu", "high", "a", alpha=0.2),
            node("Conv", "b", "high down.weight", kernel_shape=two, strides=two),
            node("Relu", "low", "b"),
            node("ConvTranspose", "up", "low up.weight", kernel_shape=two, strides=two),
            node("Concat", "c", "up high x", axis=1),
            node("Conv", "d", "c join.weight", kernel_shape=three, pads=[1] * 6),
            node("Elu", "e", "d", alpha=1.0),
            node("Conv", "dose", "e out.weight out.bias", kernel_shape=[1, 1, 1]),
        ],
    }  # fmt: skip
    weights_file.write(path, graph, CARD, {"made_by": "tests/peers"}, weights)


def hounsfield(shape, seed):
    return np.random.default_rng(seed).uniform(-1100, 1800, shape).astype(np.float32)


def seen(pet, ct, ports):
    """The network's input, as float32."""
    images = {
        "pet": 0.8 * np.log1p(pet.astype(np.float64)) - 0.3,
        "ct": 0.001 * np.clip(ct.astype(np.float64), -1000, 1500) + 0.1,
    }
    return np.stack([images[port] for port in ports]).astype(np.float32)


CASES = [
    # shape, ports, axes, how PET and CT are stored: order of axes and flips
    ((37, 41, 33), "pet ct", "xyz", ((0, 1, 2), (0, 0, 0)), ((0, 1, 2), (0, 0, 0))),
    ((37, 41, 33), "ct pet", "zyx", ((0, 1, 2), (0, 0, 0)), ((0, 1, 2), (0, 0, 0))),
    ((17, 25, 49), "ct pet", "xyz", ((2, 0, 1), (0, 1, 1)), ((1, 0, 2), (1, 0, 0))),
    ((16, 24, 32), "pet ct", "zyx", ((1, 2, 0), (1, 0, 1)), ((0, 1, 2), (0, 0, 1))),
    ((9, 40, 5), "pet ct", "zyx", ((0, 2, 1), (0, 0, 1)), ((2, 1, 0), (1, 1, 1))),
]


@pytest.mark.parametrize(("shape", "ports", "axes", "of_pet", "of_ct"), CASES)
def test_pet_ct(tmp_path, shape, ports, axes, of_pet, of_ct):
    weights, ports = random_weights(len(axes) + shape[0]), ports.split()
    pet, ct = uptake(shape, seed=1), hounsfield(shape, seed=2)
    model, ct_path = tmp_path / "m.safetensors.zst", tmp_path / "ct.nii"
    write_model(model, weights, ports, axes)
    forward = network(weights)
    reference = sliding_window(forward, seen(pet, ct, ports), TILE, 0.5, "gaussian", axes)
    swapped = sliding_window(forward, seen(pet, ct, ports[::-1]), TILE, 0.5, "gaussian", axes)
    assert relative_l2(swapped, reference) > 0.1  # the order of the channels shows

    nifti.write(ct_path, *stored_as(ct, RAS_AFFINE, *of_ct))
    stored, affine = stored_as(pet, RAS_AFFINE, *of_pet)
    chosen = ("--ct", ct_path, "--overlap", 0.5, "--skip-air", "off", "--threads", 2)
    for precision, tolerance in (("float32", FLOAT32), ("bf16", BF16)):
        dose = predict(tmp_path, stored, affine, model, *chosen, "--precision", precision)
        assert_close(back_from(dose, *of_pet), reference, tolerance)
