# SPDX-License-Identifier: Apache-2.0
"""DosemapInferer in the place of MONAI's SlidingWindowInferer: the same tensor, or a refusal."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is missing: its pipelines are not compared")
pytest.importorskip("monai", reason="MONAI is missing: its inferer is not compared")

import dosemap
import torch
from dosemap.monai import DosemapInferer
from dosemap_tools import weights_file
from dosemap_tools.importing.convert import convert
from dosemap_tools.importing.network import UNITS, Port, Statement
from dosemap_tools.importing.torch_network import export_program, to_onnx
from emulated_cuda import needs_module, settings
from images import uptake
from import_networks import Lopsided, network
from make_test_models import CARD, random_generator, randomise, write_module
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from monai.networks import nets
from program import assert_close, relative_l2

TOLERANCE = 1e-5
THREADS = 2


def written(folder, module, **options):
    path = folder / "network.safetensors.zst"
    write_module(path, module, **options)
    return path


def tensor(shape, seed=0, count=1):
    """(count, 1, *shape), no two axes alike; from -1 up, as a normalised image would be."""
    images = [uptake(shape, seed + n) / 4 - 1 for n in range(count)]
    return torch.from_numpy(np.stack(images)[:, None])


def both(model, module, inputs, *arguments, **options):
    """What dosemap and MONAI make of the same call."""
    made = DosemapInferer(*arguments, **options, model=model, threads=THREADS)
    with torch.no_grad():
        expected = SlidingWindowInferer(*arguments, **options)(inputs, module)
        result = made(inputs, module)
    assert result.shape == expected.shape and result.dtype == expected.dtype
    assert type(result) is type(expected) and result.device == expected.device
    return result, expected


def assert_same(model, module, inputs, *arguments, **options):
    result, expected = both(model, module, inputs, *arguments, **options)
    assert_close(result.numpy(), expected.numpy(), TOLERANCE)
    return result


MODULES = {
    "lopsided": lambda: network(Lopsided),
    "batch": lambda: random_generator("batch"),
    "strided": lambda: random_generator("strided", 5),
    "UNet": lambda: randomise(
        nets.UNet(3, 1, 1, channels=(5, 8, 12), strides=(2, 2), num_res_units=1, norm="batch"), 1
    ),
    "SegResNet": lambda: randomise(
        nets.SegResNet(3, 8, 1, 1, blocks_down=(1, 2), blocks_up=(1,)), 2
    ),
}
# All values of each column at least twice, not all combinations.
CASES = [
    ("lopsided", (23, 17, 31), (16, 12, 20), 0.25, "constant", "xyz"),
    ("lopsided", (23, 17, 31), (16, 12, 20), 0.5, "gaussian", "zyx"),
    ("lopsided", (5, 30, 9), (16, 12, 20), 0.0, "gaussian", "xyz"),
    ("batch", (37, 41, 33), (32, 32, 32), 0.5, "gaussian", "xyz"),
    ("batch", (19, 7, 1), (32, 32, 32), 0.25, "constant", "zyx"),
    ("batch", (33, 40, 48), (32, 48, 40), 0.75, "constant", "zyx"),
    ("strided", (35, 40, 33), (32, 24, 32), 0.25, "gaussian", "zyx"),
    ("UNet", (29, 31, 37), (24, 16, 32), 0.25, "constant", "xyz"),
    ("UNet", (11, 40, 23), (24, 16, 32), 0.6, "gaussian", "zyx"),
    ("SegResNet", (21, 33, 18), (16, 24, 12), 0.25, "constant", "xyz"),
    ("SegResNet", (16, 24, 12), (16, 24, 12), 0.5, "gaussian", "zyx"),
]


@pytest.mark.parametrize(("kind", "shape", "roi", "overlap", "mode", "axes"), CASES)
def test_same_tensor(tmp_path, kind, shape, roi, overlap, mode, axes):
    module, inputs = MODULES[kind](), tensor(shape)
    patch = roi if axes == "xyz" else roi[::-1]
    model = written(tmp_path, module, spatial_axes=axes, patch_size=patch)
    result = assert_same(model, module, inputs, roi, 4, overlap, mode)
    # With two axes exchanged the comparison has to fail.
    turned = SlidingWindowInferer(roi[::-1], 4, overlap, mode)
    with torch.no_grad():
        other = turned(inputs.transpose(2, 4), module).transpose(2, 4)
    assert relative_l2(result.numpy(), other.numpy()) > 100 * TOLERANCE


def test_defaults_are_those_of_monai(tmp_path):
    module, inputs = MODULES["lopsided"](), tensor((20, 31, 14))
    model = written(tmp_path, module, patch_size=(12, 12, 12))
    assert_same(model, module, inputs, (12, 12, 12))
    assert_same(model, module, inputs, 12)


@pytest.mark.parametrize("roi", [-1, (16, -1, None), (0, 12, 40)], ids=str)
def test_windows_as_long_as_the_image(tmp_path, roi):
    module, inputs = MODULES["lopsided"](), tensor((20, 31, 14))
    model = written(tmp_path, module, patch_size=(12, 12, 12))
    assert_same(model, module, inputs, roi, overlap=(0.5, 0.5, 0.5))


LAYOUTS = {
    "as torch makes them": lambda x: x.contiguous(),
    "x fastest": lambda x: x.permute(0, 1, 4, 3, 2).contiguous().permute(0, 1, 4, 3, 2),
    "y fastest": lambda x: x.permute(0, 1, 2, 4, 3).contiguous().permute(0, 1, 2, 4, 3),
    "channels last": lambda x: x.to(memory_format=torch.channels_last_3d),
    "cut out": lambda x: torch.nn.functional.pad(x, (2, 3, 1, 4, 5, 6))[:, :, 5:-6, 1:-4, 2:-3],
    "every other": lambda x: x.repeat_interleave(2, 4)[..., ::2],
    "one value": lambda x: x[:, :, :1, :1, :1].expand(x.shape),
}


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR", "stored"])
def test_orientation_and_memory_do_not_matter(tmp_path, orientation, axes):
    """The tensor's axes are the network's, whatever the card says of images."""
    module, inputs = MODULES["lopsided"](), tensor((20, 31, 14), count=2)
    voxel_mm = None if orientation == "LPS" else (3.3, 4.4, 5.5)
    model = dosemap.load_model(
        written(
            tmp_path,
            module,
            orientation=orientation,
            spatial_axes=axes,
            voxel_size_mm=voxel_mm,
            patch_size=(12, 12, 12),
        )
    )
    for name, laid in LAYOUTS.items():
        x = laid(inputs)
        assert torch.equal(x, inputs) == (name != "one value"), name
        before = x.clone()
        assert_same(model, module, x, (12, 16, 10))
        assert torch.equal(x, before), name


def test_several_images(tmp_path):
    module, inputs = MODULES["UNet"](), tensor((21, 16, 30), count=3)
    model = written(tmp_path, module, patch_size=(16, 16, 16))
    assert_same(model, module, inputs, (16, 16, 16), sw_batch_size=2)


def test_the_card_does_nothing_to_the_values(tmp_path):
    """Intensity, air and units are of images; tensors hold what the network sees."""
    module, inputs = MODULES["batch"](), tensor((32, 35, 32))
    inputs[:, :, :, 32:] = -1  # windows that skip_air would leave out
    model = written(
        tmp_path,
        module,
        quantity="suv",
        input_intensity=[{"clip": [0.5, 2.0]}, {"log1p": True}, {"scale": 3.0, "offset": -0.7}],
        output_intensity=[{"scale": 0.05, "offset": 0.3}, {"square": True}],
    )
    assert_same(model, module, inputs, (32, 32, 32), overlap=0.0)


def written_for_two(folder, module, ports, axes):
    """A module of two channels; a port is a quantity and its number of channels."""
    step = {"scale": 0.01, "offset": 2.0}
    inputs = tuple(Port(f"in{i}", q, UNITS[q] or "1", n, (step,)) for i, (q, n) in enumerate(ports))
    quantity = "other" if ports[0][0] == "other" else "dose_per_activity"
    output = Port("out", quantity, UNITS[quantity] or "1", 1, ())
    stated = Statement("two", (12, 12, 12), axes, "LPS", inputs, (output,))
    made = convert(to_onnx(export_program(module, [2], stated)[0]), stated, "two")
    path = folder / "two.safetensors.zst"
    weights_file.write(path, made.graph, CARD, {"made_by": "tests"}, made.tensors)
    return path


PORTS = [
    [("suv", 1), ("hu", 1)],
    [("hu", 1), ("uptake", 1)],
    [("other", 1), ("other", 1)],
    [("other", 2)],
]


@pytest.mark.parametrize("ports", PORTS, ids=str)
@pytest.mark.parametrize("axes", ["xyz", "zyx"])
def test_two_channels(tmp_path, ports, axes):
    """In the order of the network's; no HU are looked for in them, nor need they be images."""
    module = network(Lopsided, seed=3, inputs=2)
    model = written_for_two(tmp_path, module, ports, axes)
    inputs = torch.cat([tensor((17, 25, 20), 1), tensor((17, 25, 20), 2) * 0.01], 1)
    result = assert_same(model, module, inputs, (12, 16, 20), 1, 0.25, "gaussian")
    other, _ = both(model, module, inputs.flip(1), (12, 16, 20), 1, 0.25, "gaussian")
    assert relative_l2(result.numpy(), other.numpy()) > 1e-2
    with pytest.raises(dosemap.InvalidValueError, match="channels are not 2"):
        DosemapInferer(12, model=model)(inputs[:, :1])


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)],
    ids=str,
)
def test_other_floats_come_back_as_they_were(tmp_path, dtype, tolerance):
    """Computed in float32: the input's rounding and the result's are all that differs."""
    module, inputs = MODULES["lopsided"](), tensor((20, 13, 14)).to(dtype)
    model = written(tmp_path, module, patch_size=(12, 12, 12))
    with torch.no_grad():
        expected = SlidingWindowInferer(12)(inputs.float(), module)
        result = DosemapInferer(12, model=model)(inputs, module)
    assert result.dtype == dtype
    assert_close(result.float().numpy(), expected.numpy(), tolerance)


@needs_module
def test_network_on_a_gpu(tmp_path):
    """Emulated; in a process of its own, because a process finds its devices once."""
    module, inputs = MODULES["UNet"](), tensor((21, 16, 18))
    model = written(tmp_path, module, patch_size=(16, 16, 16))
    torch.save(inputs, tmp_path / "inputs.pt")
    code = f"""
import torch
from dosemap.monai import DosemapInferer
inputs = torch.load({str(tmp_path / "inputs.pt")!r})
made = DosemapInferer(16, 2, 0.5, "gaussian", sw_device="cuda", model={str(model)!r})
torch.save(made(inputs), {str(tmp_path / "result.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | settings())
    with torch.no_grad():
        expected = SlidingWindowInferer(16, 2, 0.5, "gaussian")(inputs, module)
    result = torch.load(tmp_path / "result.pt")
    assert_close(result.numpy(), expected.numpy(), TOLERANCE)
    on_the_cpu = DosemapInferer(16, 2, 0.5, "gaussian", model=model)(inputs)
    assert not torch.equal(result, on_the_cpu), "it was not the GPU's arithmetic"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no GPU")
def test_tensors_on_a_gpu(tmp_path):
    module, inputs = MODULES["UNet"]().cuda(), tensor((29, 31, 37)).cuda()
    model = written(tmp_path, copy.deepcopy(module).cpu(), patch_size=(16, 16, 16))
    torch.backends.cudnn.allow_tf32 = False
    expected = SlidingWindowInferer(16)(inputs, module.eval())
    for where in (None, "cpu"):
        result = DosemapInferer(16, model=model, sw_device=where)(inputs)
        assert result.device == inputs.device
        assert_close(result.cpu().numpy(), expected.detach().cpu().numpy(), TOLERANCE)
    for options in ({"device": "cpu"}, {"cpu_thresh": 1000}):
        assert DosemapInferer(16, model=model, **options)(inputs).device.type == "cpu"


def test_where_the_result_goes(tmp_path):
    """`device`, `cpu_thresh` and the call's own `device` as MONAI has them; meta holds no data."""
    model = written(tmp_path, MODULES["lopsided"](), patch_size=(12, 12, 12))
    inputs = tensor((20, 13, 14))
    assert DosemapInferer(12, model=model, device="meta")(inputs).device.type == "meta"
    assert DosemapInferer(12, model=model)(inputs, device="meta").device.type == "meta"
    made = DosemapInferer(12, model=model, device="meta")
    assert made(inputs, device=torch.device("cpu")).device.type == "cpu"


def test_meta_data_are_kept(tmp_path):
    module, values = MODULES["lopsided"](), tensor((20, 31, 14), count=2)
    model = written(tmp_path, module, patch_size=(12, 12, 12))
    affine = torch.tensor([[-4.0, 0, 0, 60], [0, -4.0, 0, 50], [0, 0, 5.0, -200], [0, 0, 0, 1]])
    inputs = MetaTensor(values, affine=affine, meta={"filename_or_obj": "pet.nii.gz", "suv": 1.5})
    inputs.applied_operations = [{"class": "Orientation", "id": 7}]
    result, expected = both(model, module, inputs, 12)
    assert_close(result.numpy(), expected.numpy(), TOLERANCE)
    assert torch.equal(result.affine, affine)
    assert result.meta.keys() == expected.meta.keys() and result.meta["suv"] == 1.5
    assert result.applied_operations == expected.applied_operations
    result.meta["suv"] = 2.0
    assert inputs.meta["suv"] == 1.5


def test_gradients_are_refused_not_lost(tmp_path):
    model = written(tmp_path, MODULES["lopsided"](), patch_size=(12, 12, 12))
    made, inputs = DosemapInferer(12, model=model), tensor((12, 12, 12)).requires_grad_()
    with pytest.raises(dosemap.InvalidValueError, match="gradient"):
        made(inputs)
    with torch.no_grad():
        result = made(inputs)
    with torch.inference_mode():
        assert torch.equal(made(inputs.detach().clone()), result)
    assert not result.requires_grad


REFUSED = [
    ({"with_coord": True}, "with_coord=True"),
    ({"padding_mode": "reflect"}, "padding_mode='reflect'"),
    ({"cval": -1.0}, "cval=-1"),
    ({"mode": "gaussian", "sigma_scale": 0.25}, "sigma_scale=0.25"),
    ({"overlap": (0.25, 0.25, 0.5)}, r"overlap=\(0.25, 0.25, 0.5\)"),
    ({"overlap": 0.95}, "overlap=0.95"),
    ({"mode": "linear"}, "mode='linear'"),
    ({"sw_batch_size": 0}, "sw_batch_size=0"),
    ({"precision": "int8"}, "precision='int8'"),
    ({"roi_size": (12, 12)}, r"roi_size=\(12, 12\)"),
    ({"model": None}, "there is no model"),
]


@pytest.mark.parametrize(("changed", "words"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_dosemap_does_not_do(tmp_path, changed, words):
    model = written(tmp_path, MODULES["lopsided"](), patch_size=(12, 12, 12))
    with pytest.raises(dosemap.InvalidValueError, match=words):
        DosemapInferer(**{"roi_size": 12, "model": model, **changed})(tensor((13, 12, 12)))


CALLS = [
    (lambda made, x: made(x[0]), "4 axes"),
    (lambda made, x: made(x.long()), "int64"),
    (lambda made, x: made(x.cfloat()), "complex64"),
    (lambda made, x: made(x.numpy()), "ndarray"),
    (lambda made, x: made(x, None, 3), "network"),
    (lambda made, x: made(x, None, condition=x), "condition"),
    (lambda made, x: made(torch.cat([x, x], 1)), "channels are not 1"),
    (lambda made, x: made(torch.full_like(x, torch.nan)), "nan"),
    (lambda made, x: made(x[:, :, :0]), "0"),
]


@pytest.mark.parametrize(("call", "words"), CALLS)
def test_calls_that_are_refused(tmp_path, call, words):
    model = written(tmp_path, MODULES["lopsided"](), patch_size=(12, 12, 12))
    with pytest.raises((dosemap.InvalidValueError, TypeError), match=words):
        call(DosemapInferer(12, model=model), tensor((13, 12, 12)))


def test_messages_name_keywords_that_there_are(tmp_path):
    model = written(tmp_path, MODULES["batch"]())
    with pytest.raises(dosemap.Error, match="roi_size") as caught:
        DosemapInferer((32, 36, 32), model=model)(tensor((32, 40, 32)))
    assert "tile=" not in str(caught.value) and "multiple" in str(caught.value)


def test_what_saves_monai_memory_changes_nothing(tmp_path):
    module, inputs = MODULES["lopsided"](), tensor((20, 31, 14))
    model = written(tmp_path, module, patch_size=(12, 12, 12))
    plain = DosemapInferer(12, model=model)(inputs)
    for options in ({"cache_roi_weight_map": True}, {"buffer_steps": 2, "buffer_dim": 0}):
        assert torch.equal(DosemapInferer(12, model=model, **options)(inputs), plain)
    assert torch.equal(DosemapInferer(12, model=model)(inputs, buffer_steps=1), plain)


def test_no_copy_where_the_memory_can_be_taken_as_it_lies(tmp_path):
    """Both ways that images lie in memory; `stored` says of which axis is which, so it is one."""
    from dosemap.monai import _Layout

    inputs = tensor((20, 31, 14))[0, 0]
    for orientation, axes, layout, taken in [
        ("RAS", "xyz", "C", True),
        ("PIR", "zyx", "C", True),
        ("LPS", "xyz", "F", True),
        ("stored", "zyx", "C", True),
        ("stored", "xyz", "F", True),
        ("stored", "xyz", "C", False),
    ]:
        graph = {"orientation": orientation, "spatial_axes": axes, "voxel_size_mm": None}
        image = inputs if layout == "C" else inputs.permute(2, 1, 0).contiguous().permute(2, 1, 0)
        packed = _Layout(graph, image.stride()).packed(image)
        assert packed.flags.f_contiguous
        assert (packed.ctypes.data == image.data_ptr()) == taken, (orientation, axes, layout)


def test_progress(tmp_path, capfd):
    model = written(tmp_path, MODULES["lopsided"](), patch_size=(12, 12, 12))
    made = DosemapInferer(12, model=model, progress=True)
    made(tensor((20, 31, 14)))
    assert "100%" in capfd.readouterr().err
    shares = []
    made = DosemapInferer(12, model=model, progress=lambda share, stage: shares.append(share))
    made(tensor((20, 31, 14), count=2))
    assert shares.count(1.0) >= 2 and all(0 <= share <= 1 for share in shares)


def test_copies_and_pickles(tmp_path):
    model = written(tmp_path, MODULES["lopsided"](), patch_size=(12, 12, 12))
    made, inputs = DosemapInferer(12, mode="gaussian", model=model), tensor((20, 31, 14))
    expected = made(inputs)
    assert isinstance(made, Inferer)
    for other in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert torch.equal(other(inputs), expected)
    assert "DosemapInferer(roi_size=12" in repr(made) and "test" in repr(made)


def test_model_is_shared(tmp_path):
    model = dosemap.load_model(written(tmp_path, MODULES["lopsided"](), patch_size=(12, 12, 12)))
    assert DosemapInferer(12, model=model).model is model
