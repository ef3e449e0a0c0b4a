# SPDX-License-Identifier: Apache-2.0
"""`dosemap forward`: the network alone on patches, against the same network in numpy."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    MODEL,
    TINY_CARD,
    assert_refused,
    dosemap,
    tiny_graph,
    write_tiny_model,
)
from dosemap_tools import weights_file
from patches import Arrays, read_patches, write_patches

RNG = np.random.default_rng(17)
KERNEL = RNG.normal(0, 0.3, (2, 3, 3, 1, 2)).astype(np.float32)
PADS = [1, 0, 0, 1, 0, 1]  # three begins, three ends: the size stays
SIZE = (6, 4, 8)


def port(name: str, channels: int, quantity: str = "other", unit: str = "counts") -> dict:
    return {"name": name, "quantity": quantity, "unit": unit, "channels": channels, "intensity": []}


def graph(axes: str = "xyz") -> dict:
    """Two inputs; outputs in half and full size, in one value, and an input as it is."""
    nodes = [
        ("Concat", ["pet", "ct"], "all", {"axis": 1}),
        ("Conv", ["all", "w"], "h", {"kernel_shape": [3, 1, 2], "pads": PADS}),
        ("Slice", ["h"], "dose", {"starts": [1], "ends": [2], "axes": [1]}),
        ("MaxPool", ["h"], "pooled", {"kernel_shape": [1, 2, 4], "strides": [1, 2, 4]}),
        ("GlobalAveragePool", ["pooled"], "mean", {}),
        ("Sub", ["h", "pet"], "rest", {}),
    ]
    size = SIZE if axes == "xyz" else SIZE[::-1]
    return {
        "graph_version": 1,
        "name": "ports",
        "spatial_axes": axes,
        "orientation": "RAS",
        "patch_size": list(size),
        "voxel_size_mm": None,
        "inputs": [port("pet", 1, "uptake", "g/mL"), port("ct", 2)],
        "outputs": [
            port("pooled", 2),
            port("dose", 1, "dose_per_activity", "Gy/GBq"),
            port("mean", 2),
            port("ct", 2),
            port("rest", 2),
        ],
        "nodes": [
            {"op": op, "name": f"n{i}", "inputs": ins, "outputs": [out], "attributes": attributes}
            for i, (op, ins, out, attributes) in enumerate(nodes)
        ],
    }


def write_model(path: Path, described: dict, **weights: np.ndarray) -> Path:
    weights_file.write(path, described, TINY_CARD, {"made_by": "tests/cli"}, weights)
    return path


def expected(pet: np.ndarray, ct: np.ndarray) -> Arrays:
    """The network of graph(), whose axes are those of the arrays whatever they are called."""
    joined = np.concatenate([pet, ct], axis=1).astype(np.float64)
    padded = np.pad(joined, ((0, 0), (0, 0), (1, 1), (0, 0), (0, 1)))
    n, _, a, b, c = joined.shape
    h = np.zeros((n, 2, a, b, c))
    for i in range(3):
        for k in range(2):
            taps = KERNEL[:, :, i, 0, k].astype(np.float64)
            h += np.einsum("oc,ncxyz->noxyz", taps, padded[:, :, i : i + a, :, k : k + c])
    pooled = h.reshape(n, 2, a, b // 2, 2, c // 4, 4).max(axis=(4, 6))
    return {
        "pooled": pooled,
        "dose": h[:, 1:],
        "mean": pooled.mean(axis=(2, 3, 4), keepdims=True),
        "ct": ct,
        "rest": h - pet,
    }


def patches(n: int, size: tuple[int, ...] = SIZE) -> Arrays:
    return {
        "pet": RNG.normal(0, 1, (n, 1, *size)).astype(np.float32),
        "ct": RNG.normal(0, 1, (n, 2, *size)).astype(np.float32),
    }


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
def test_every_output_of_several_inputs(tmp_path, axes):
    model = write_model(tmp_path / "m.safetensors", graph(axes), w=KERNEL)
    given = patches(3)
    source = write_patches(tmp_path / "in.safetensors", {"ct": given["ct"], "pet": given["pet"]})
    out = tmp_path / "out.safetensors"
    result = dosemap("forward", model, source, "-o", out, "--device", "cpu")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    made, metadata = read_patches(out)
    wanted = expected(**given)
    assert list(made) == list(wanted)
    for name, values in wanted.items():
        assert made[name].shape == values.shape, name
        np.testing.assert_allclose(made[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(made["ct"], given["ct"])
    checksum = weights_file.read(model).xxh64
    assert metadata["dosemap.model_xxh64"] == checksum
    assert metadata["dosemap.model"] == "tiny" and metadata["dosemap.precision"] == "float32"


def test_another_size_and_any_number_of_threads(tmp_path):
    model = write_model(tmp_path / "m.safetensors", graph(), w=KERNEL)
    given = patches(2, (7, 6, 12))
    source = write_patches(tmp_path / "in.safetensors", given)
    written = []
    for threads in (1, 3):
        out = tmp_path / f"out{threads}.safetensors"
        assert dosemap("forward", model, source, "-o", out, "--threads", threads).returncode == 0
        written.append(out.read_bytes())
    assert written[0] == written[1]
    made, _ = read_patches(tmp_path / "out1.safetensors")
    for name, values in expected(**given).items():
        np.testing.assert_allclose(made[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_patch_does_not_depend_on_the_others(tmp_path):
    """Of 20 patches 16 are in memory at a time."""
    size = (64, 64, 64)
    described = graph()
    described["patch_size"], described["outputs"] = list(size), [described["outputs"][1]]
    model = write_model(tmp_path / "m.safetensors", described, w=KERNEL)
    given = patches(20, size)
    out, last = tmp_path / "out.safetensors", tmp_path / "last.safetensors"
    source = write_patches(tmp_path / "in.safetensors", given)
    assert dosemap("forward", model, source, "-o", out).returncode == 0
    source = write_patches(tmp_path / "one.safetensors", {k: v[19:] for k, v in given.items()})
    assert dosemap("forward", model, source, "-o", last).returncode == 0
    np.testing.assert_array_equal(read_patches(out)[0]["dose"][19:], read_patches(last)[0]["dose"])


def test_bf16_rounds(tmp_path):
    model = write_model(tmp_path / "m.safetensors", graph(), w=KERNEL)
    given = patches(1)
    source, out = write_patches(tmp_path / "in.safetensors", given), tmp_path / "out.safetensors"
    result = dosemap("forward", model, source, "-o", out, "--precision", "bf16")
    if result.returncode and "natively" in result.stderr:
        pytest.skip("this processor does not compute in bf16")
    made, metadata = read_patches(out)
    wanted = expected(**given)["dose"]
    deviation = np.linalg.norm(made["dose"] - wanted) / np.linalg.norm(wanted)
    assert 1e-5 < deviation < 2e-2
    assert metadata["dosemap.precision"] == "bf16"


def test_the_default_weights(tmp_path):
    """What predict makes of a voxel, without its units: 0.027 Gy/GBq per unit of uptake."""
    uptake = RNG.uniform(0, 20, (2, 1, 32, 32, 32)).astype(np.float32)
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    name = weights_file.read(MODEL).graph["inputs"][0]["name"]
    write_patches(source, {name: uptake})
    assert dosemap("forward", MODEL, source, "-o", out).returncode == 0
    (dose,) = read_patches(out)[0].values()
    np.testing.assert_allclose(dose, 0.027 * uptake, rtol=1e-4, atol=1e-5)


F64 = np.zeros((1, 1, 8, 8, 8), np.int64)
GOOD = np.ones((2, 1, 8, 8, 8), np.float32)
NAN = GOOD.copy()
NAN[1, 0, 2, 3, 4] = np.nan
BAD = {
    "missing": ({}, {}, ["the input 'pet' is missing", "the network's inputs are 'pet'"]),
    "unknown": ({"pet": GOOD, "mri": GOOD}, {}, ["'mri' is no input of network 'tiny'"]),
    "channels": ({"pet": GOOD.reshape(1, 2, 8, 8, 8)}, {}, ["'pet' has 2 channels", "takes 1"]),
    "dimensions": ({"pet": GOOD[0]}, {}, ["'pet' has 4 dimensions, not 5", "(patches, channels"]),
    "type": ({"pet": GOOD.astype(np.float16)}, {}, ["tensor 'pet' is F16", "store it as F32"]),
    "other type": ({"pet": F64}, {}, ["tensor 'pet' has dtype I64", "store it as F32"]),
    "nan": ({"pet": NAN}, {}, ["'pet' is nan in patch 1, channel 0, voxel (2, 3, 4)"]),
    "claim": ({"pet": GOOD}, {"shape": [2**40, 1, 8, 8, 8]}, ["its shape needs"]),
    "no patches": ({"pet": GOOD}, {"shape": [0, 1, 8, 8, 8]}, ["size 1 of its shape"]),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(tmp_path, name):
    arrays, changed, words = BAD[name]
    folder = tmp_path / "out"
    folder.mkdir()
    model = write_tiny_model(tmp_path / "m.safetensors")
    source = write_patches(tmp_path / "in.safetensors", arrays, **changed)
    result = dosemap("forward", model, source, "-o", folder / "out.safetensors")
    assert_refused(result, folder / "out.safetensors", str(source), *words)


def test_inputs_that_differ(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    model = write_model(tmp_path / "m.safetensors", graph(), w=KERNEL)
    given = patches(2)
    source = write_patches(tmp_path / "in.safetensors", {**given, "ct": given["ct"][:1]})
    result = dosemap("forward", model, source, "-o", folder / "out.safetensors")
    assert_refused(result, folder / "out.safetensors",
                   "'ct' has 1 patches of 6 x 4 x 8 voxels, 'pet' 2 of 6 x 4 x 8")  # fmt: skip


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
def test_a_size_that_the_network_does_not_take(tmp_path, axes):
    folder = tmp_path / "out"
    folder.mkdir()
    described = graph(axes)
    strides = {"kernel_shape": [2, 1, 1], "strides": [2, 1, 1]}
    described["nodes"] += [
        {"op": "MaxPool", "name": "down", "inputs": ["h"], "outputs": ["low"],
         "attributes": strides},
        {"op": "Resize", "name": "up", "inputs": ["low"], "outputs": ["again"],
         "attributes": {"mode": "nearest", "scales": [2.0, 1.0, 1.0]}},
    ]  # fmt: skip
    described["outputs"].append(port("again", 2))
    model = write_model(tmp_path / "m.safetensors", described, w=KERNEL)
    source = write_patches(tmp_path / "in.safetensors", patches(1, (5, 4, 8)))
    result = dosemap("forward", model, source, "-o", folder / "out.safetensors")
    use = "use 4 or 6 along x" if axes == "xyz" else "use 4 or 6 along z"
    assert_refused(result, folder / "out.safetensors", str(source), use)


def test_a_result_that_is_not_finite(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    described = tiny_graph()
    described["nodes"] = [
        {"op": "Mul", "name": "m", "inputs": ["pet", "pet"], "outputs": ["dose"]},
    ]
    model = write_model(tmp_path / "m.safetensors", described)
    large = GOOD.copy()
    large[1, 0, 2, 3, 4] = 1e20
    source = write_patches(tmp_path / "in.safetensors", {"pet": large})
    result = dosemap("forward", model, source, "-o", folder / "out.safetensors", "--device", "cpu")
    assert_refused(result, folder / "out.safetensors", str(model),
                   "'dose' is inf in patch 1, channel 0, voxel (2, 3, 4)")  # fmt: skip


def test_files(tmp_path):
    model = write_tiny_model(tmp_path / "m.safetensors")
    source = write_patches(tmp_path / "in.safetensors", {"pet": GOOD})
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "out.safetensors"
    refused = dosemap("forward", model, source, "-o", tmp_path / "missing/out.safetensors")
    assert_refused(refused, out, "create the folder")
    assert_refused(dosemap("forward", model, tmp_path / "none", "-o", out), out, "none")
    whole = source.read_bytes()
    source.write_bytes(whole[:-4])
    assert_refused(dosemap("forward", model, source, "-o", out), out, "should have 4096 bytes")
    source.write_bytes(whole + b"more")
    assert_refused(dosemap("forward", model, source, "-o", out), out, "but has 4100")
    compressed = tmp_path / "in.safetensors.zst"
    compressed.write_bytes(MODEL.read_bytes())
    assert_refused(dosemap("forward", model, compressed, "-o", out), out, "decompress it first")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "a weights file and a file of patches"),
        (("a",), "a weights file and a file of patches are wanted, not 1"),
        (("a", "b"), "-o OUT.safetensors"),
        (("a", "b", "-o", "c", "--precision", "int8"), "int8"),
    ],
)
def test_usage(arguments, words):
    result = dosemap("forward", *arguments)
    assert result.returncode == 2 and words in result.stderr, result.stderr


@pytest.mark.parametrize("which", ["m.safetensors", "in.safetensors"])
def test_inputs_are_not_overwritten(tmp_path, which):
    """However the path is spelled."""
    model = write_model(tmp_path / "m.safetensors", graph(), w=KERNEL)
    source = tmp_path / "in.safetensors"
    source.write_bytes(b"patches")
    before = (tmp_path / which).read_bytes()
    out = f"{tmp_path}/../{tmp_path.name}/./{which}"
    result = dosemap("forward", model, source, "-o", out)
    assert result.returncode == 2 and "would overwrite an input" in result.stderr, result.stderr
    assert (tmp_path / which).read_bytes() == before


def test_inspect_shows_the_ports(tmp_path):
    model = write_model(tmp_path / "m.safetensors", graph(), w=KERNEL)
    text = dosemap("inspect", model).stdout
    assert "ct: 2 channels, other in counts" in text
    assert "dose; what only other outputs need is left out" in text
    report = json.loads(dosemap("inspect", model, "--json").stdout)
    assert report["plan"]["output"] == "dose"
    assert [step["kind"] for step in report["plan"]["steps"]] == ["conv", "slice"]
