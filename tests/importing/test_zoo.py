# SPDX-License-Identifier: Apache-2.0
"""The networks that people train, by every way into a weights file, through the program.

Relative L2 against the PyTorch module at most 1e-5, every output, whole batches.
"""

import logging
import warnings
from functools import lru_cache

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is missing: its networks are not imported")
pytest.importorskip("monai", reason="MONAI is missing: its networks are not imported")

import torch
from dosemap_tools.importing import onnx_file, program_file
from dosemap_tools.importing.convert import convert
from dosemap_tools.importing.torch_network import quiet, to_onnx
from imported import ports, run_network, statement
from program import assert_close
from zoo import ZOO, randomise

TOLERANCE = 1e-5
BATCH = 3


@pytest.fixture(autouse=True)
def silent():
    """Exporters warn of much that is none of our business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        yield
        logging.disable(logging.NOTSET)


class Prepared:
    """A network, its program, and what it makes of a random patch."""

    def __init__(self, name):
        case = ZOO[name]
        torch.manual_seed(7)
        self.size, self.channels = case.size, case.channels
        self.module = randomise(case.make())
        self.x = torch.randn(BATCH, case.channels, *case.size)
        with torch.no_grad():
            results = self.module(self.x)
        results = results if isinstance(results, list | tuple) else [results]
        self.expected = [values.numpy() for values in results]
        for values in self.expected:
            assert np.isfinite(values).all() and 1e-3 < values.std() < 1e3, values.std()

    def program(self, dynamic="N"):
        """Return the exported program, with the batch, or the spatial axes as well, left open."""
        axes = {0: torch.export.Dim("N", min=1, max=64)}
        if dynamic == "spatial":
            axes |= dict.fromkeys((2, 3, 4), torch.export.Dim.AUTO)
        shapes = None if dynamic == "static" else (axes,)
        x = self.x[:1] if dynamic == "static" else self.x
        with quiet(), torch.no_grad():
            return torch.export.export(self.module, (x,), dynamic_shapes=shapes, strict=False)


prepared = lru_cache(maxsize=1)(Prepared)


@lru_cache(maxsize=1)
def program_of(name):
    return prepared(name).program()


def by_program(name, folder):
    """Return the model of the .pt2 file."""
    path = folder / "net.pt2"
    torch.export.save(program_of(name), path)
    return to_onnx(program_file.load(path))


def by_onnx(name, folder):
    """Return the model that PyTorch's exporter writes by itself."""
    path = folder / "net.onnx"
    with quiet(), torch.no_grad():
        torch.onnx.export(program_of(name), dynamo=True, verbose=False).save(path)
    return onnx_file.load(path)


def by_script(name, folder):
    """Return the model that the older exporter writes, all axes but the channels left open."""
    path, here = folder / "net.onnx", prepared(name)
    with quiet(), torch.no_grad():
        torch.onnx.export(
            here.module, (here.x,), path, dynamo=False, input_names=["x"],
            dynamic_axes={"x": {0: "N"}},
        )  # fmt: skip
    return onnx_file.load(path)


def by_decomposed(name, folder):
    """Return the model of the program in PyTorch's core operators."""
    with quiet():
        return to_onnx(program_of(name).run_decompositions())


def by_spatial(name, folder):
    """Return the model of a program whose patch size is left open."""
    return to_onnx(prepared(name).program("spatial"))


def by_static(name, folder):
    """Return the model of a program for one batch of 1."""
    return to_onnx(prepared(name).program("static"))


WAYS = {
    "pt2": by_program,
    "onnx": by_onnx,
    "script": by_script,
    "decomposed": by_decomposed,
    "spatial": by_spatial,
    "static": by_static,
}
CASES = [
    (name, way)
    for name, case in ZOO.items()
    for way in ("pt2", "onnx", *case.also)
    if way not in case.skip
]


@pytest.mark.parametrize(("name", "way"), CASES, ids=lambda value: value)
def test_network(name, way, tmp_path):
    here = prepared(name)
    model = WAYS[way](name, tmp_path)
    axes = "zyx" if way == "onnx" else "xyz"
    # What has no voxels is a row of channels.
    channels = [v.shape[1] if v.ndim == 5 else v[0].size for v in here.expected]
    outputs = ports("out", *channels)
    network = convert(model, statement(here.size, ports("in", here.channels), outputs, axes), name)
    found = run_network(network, [here.x.numpy()], tmp_path)
    assert len(found) == len(here.expected)
    for result, reference in zip(found, here.expected, strict=True):
        assert_close(result, reference, TOLERANCE)
