# SPDX-License-Identifier: Apache-2.0
"""dosemap as an inferer of MONAI.

    from dosemap.monai import DosemapInferer

    inferer = DosemapInferer((96, 96, 96), 4, 0.5, mode="gaussian", model="w.safetensors.zst")
    dose = inferer(inputs, network)  # as SlidingWindowInferer((96, 96, 96), 4, 0.5, ...) gives it

Needs MONAI and PyTorch; nothing else of the package does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import _core
from ._errors import Error, invalid, optional, wrong_type
from ._keywords import device_of, running_options
from ._model import Loan, Model, load_model
from ._progress import reporting

for _package in ("numpy", "torch", "monai"):
    optional(_package, "dosemap.monai")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from monai.data.meta_tensor import MetaTensor  # noqa: E402
from monai.inferers.inferer import Inferer  # noqa: E402
from monai.utils.misc import ensure_tuple_rep, fall_back_tuple  # noqa: E402
from monai.utils.type_conversion import convert_to_dst_type  # noqa: E402

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DosemapInferer"]

# MONAI's default, the only one that dosemap has.
_SIGMA_SCALE = 0.125
# Which spatial axis of the network's tensors is the model's x, y and z.
_AXES_OF_MODEL = {"xyz": (0, 1, 2), "zyx": (2, 1, 0)}
# Where the letters of an orientation point: axis and sense in RAS.
_DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
# Keywords of predict() in messages, and what stands in their place here.
_WORDS = {
    r"\bnan_to_zero=True": "torch.nan_to_num(inputs)",
    r"\btile=": "roi_size=",
    r"\ba smaller tile\b": "a smaller roi_size",
    r"\bbatch\b": "sw_batch_size",
    r"\bblend\b": "mode",
    r"\bdevice=": "sw_device=",
}


class DosemapInferer(Inferer):
    """MONAI's ``SlidingWindowInferer`` with dosemap in the place of the network.

    A pipeline replaces one line, and gets the same tensor to within rounding (relative L2 of 1e-5):

        inferer = SlidingWindowInferer(roi_size, sw_batch_size, overlap, mode)
        inferer = DosemapInferer(roi_size, sw_batch_size, overlap, mode, model="w.safetensors.zst")

    The weights file comes from the pipeline's own network by ``dosemap import``. Tensors hold the
    network's values along the network's axes, before and after: what the model's card says of
    units, intensity, orientation, voxel sizes and air is the pipeline's own work here, and is left
    out. For all of it, from a PET to a dose map, there is ``dosemap.load_model(...).predict(...)``.

    The keywords are those of ``SlidingWindowInferer``, in its order and with its defaults:

    Args:
        roi_size: window, along the tensor's axes; None and values below 1: as long as the image.
        sw_batch_size: windows at once on a GPU; None: as many as suit it. The CPU takes one per
            thread. It does not change the result.
        overlap: of neighbouring windows, 0 to 0.9, the same along each axis.
        mode: "constant" or "gaussian".
        sigma_scale: 0.125; in mode "constant" it means nothing.
        padding_mode, cval: "constant" and 0: images smaller than the window are padded with zeros.
        sw_device: where the network runs: "cpu", "cuda", "cuda:1", "auto"; None: where the inputs
            are.
        device: where the result goes; None: where the inputs are.
        progress: a bar for each image, or a function of the share done (0 to 1) and the stage.
        cache_roi_weight_map, buffer_steps, buffer_dim: with these MONAI saves time and memory.
            dosemap does both its own way; they are taken and change nothing.
        cpu_thresh: the result of images with more voxels goes to the CPU, unless `device` is given.
        with_coord: False.
        model: a weights file, or what ``dosemap.load_model`` returned.
        precision: "float32", "bf16", "fp16", "tf32", or "auto": the fastest that the model's card
            vouches for.
        threads: of the CPU; None: ``OMP_NUM_THREADS``, or all cores.

    """

    def __init__(
        self,
        roi_size: Sequence[int | None] | int | None,
        sw_batch_size: int | None = None,
        overlap: Sequence[float] | float = 0.25,
        mode: str = "constant",
        sigma_scale: Sequence[float] | float = _SIGMA_SCALE,
        padding_mode: str = "constant",
        cval: float = 0.0,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        progress: bool | Callable[[float, str], object] = False,
        cache_roi_weight_map: bool = False,
        cpu_thresh: int | None = None,
        buffer_steps: int | None = None,
        buffer_dim: int = -1,
        with_coord: bool = False,
        *,
        model: str | os.PathLike[str] | Model | None = None,
        precision: str = "float32",
        threads: int | None = None,
    ) -> None:
        super().__init__()
        _check_window(overlap, sigma_scale if mode == "gaussian" else _SIGMA_SCALE)
        _check_padding(padding_mode, cval)
        if with_coord:
            raise invalid(
                "with_coord=True, and dosemap's networks take no coordinates", "leave it out"
            )
        if model is None:
            raise invalid("there is no model", "give model= the weights file of the network")
        self.roi_size = roi_size
        self.overlap = float(ensure_tuple_rep(overlap, 3)[0])
        self.mode = str(mode)
        self.sw_device = sw_device
        self.device = device
        self.progress = progress
        self.cpu_thresh = cpu_thresh
        self.model = model if isinstance(model, Model) else load_model(model)
        self._options = _options(self.overlap, self.mode, precision, threads, sw_batch_size)

    def __repr__(self) -> str:
        shown = ("roi_size", "overlap", "mode", "model")
        return f"DosemapInferer({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def __call__(
        self,
        inputs: torch.Tensor,
        network: object = None,
        *args: object,
        **kwargs: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        """Return what the network makes of `inputs`.

        Args:
            inputs: (N, C, X, Y, Z), floating point and finite, with the model's one or two channels
                (whatever they mean) in the order of its inputs. Axes are the network's: for a model
                with ``spatial_axes`` zyx they are (N, C, Z, Y, X). What is float32, on the host and
                densely packed is read where it lies.
            network: taken, because that is how inferers are called, and not used.
            *args: refused, as is all that is meant for a network.
            **kwargs: `device`, as MONAI has it.

        Returns:
            (N, 1, X, Y, Z), of the inputs' dtype, with their meta data and without gradients. Of a
            network with several outputs it is that of the dose alone.

        """
        device = kwargs.pop("device", self.device)
        _refuse_arguments(args, kwargs)
        graph = self.model.graph
        _check_inputs(inputs, graph["inputs"], self.model.path)
        size = inputs.shape[2:]
        result = torch.empty((inputs.shape[0], 1, *size), dtype=torch.float32, device="cpu")
        try:
            with self.model._predictor(**self._options_for(inputs, graph)) as predictor:
                for image, target in zip(_plain(inputs), result, strict=True):
                    self._run(predictor, graph, image, target[0])
        except Error as error:
            raise _in_words_of_monai(error) from None
        if device is None:
            large = self.cpu_thresh is not None and size.numel() > self.cpu_thresh
            device = "cpu" if large else inputs.device
        return _like(result, inputs, torch.device(device))

    def _options_for(self, inputs: torch.Tensor, graph: dict[str, Any]) -> dict[str, Any]:
        """Return the core predictor's options for tensors like these."""
        if isinstance(self.roi_size, Sequence) and len(self.roi_size) != 3:
            raise invalid(f"roi_size={self.roi_size!r}", "give one size, or one for each axis")
        window = fall_back_tuple(self.roi_size, inputs.shape[2:])
        device = self.sw_device
        if device is None:
            device = inputs.device if inputs.is_cuda else "cpu"
        tile = tuple(int(window[axis]) for axis in _AXES_OF_MODEL[graph["spatial_axes"]])
        return self._options | {"tile": tile, "device": device_of(device)}

    def _run(
        self,
        predictor: Loan,
        graph: dict[str, Any],
        image: torch.Tensor,
        target: torch.Tensor,
    ) -> None:
        """Predict `image` (C, X, Y, Z) into `target` (X, Y, Z)."""
        image = image.to("cpu", torch.float32)
        layout = _Layout(graph, image.stride()[1:])
        volumes = [_core.Volume.view(layout.packed(channel), layout.affine) for channel in image]
        second = volumes[1] if len(volumes) > 1 else None
        with reporting(self.progress) as report:
            made = predictor.run(volumes[0], None, second, None, None, float("nan"), report)
        layout.view(target)[...] = made.dose.data


class _Layout:
    """The tensor's axes as those of the volume that the core gets.

    The volume's axes are the tensor's from the fastest in memory to the slowest, so that nothing is
    copied. Its affine says of each where it points: there where the model wants it, and with the
    model's voxel sizes, so that nothing is turned or resampled either. Only a model that wants axes
    as they are stored reads no affine: for that one they are x, y, z, however they lie in memory.
    """

    def __init__(self, graph: dict[str, Any], strides: Sequence[int]) -> None:
        of_model = _AXES_OF_MODEL[graph["spatial_axes"]]
        letters = graph["orientation"]
        order = tuple(sorted(range(3), key=lambda axis: strides[axis]))
        if letters == "stored":
            letters, order = "RAS", of_model
        self._order = order
        self.affine = [0.0] * 12  # rows of 4
        for axis, letter, mm in zip(
            of_model, letters, graph["voxel_size_mm"] or "111", strict=True
        ):
            row, sense = _DIRECTIONS[letter]
            self.affine[4 * row + order.index(axis)] = sense * float(mm)

    def view(self, image: torch.Tensor) -> NDArray[np.float32]:
        """Return `image` (X, Y, Z) with the volume's axes."""
        return image.permute(self._order).numpy()

    def packed(self, image: torch.Tensor) -> NDArray[np.float32]:
        """Return the same as the core takes it, x fastest: no copy where it lies like that."""
        return np.asfortranarray(self.view(image))


def _options(
    overlap: float, mode: str, precision: str, threads: int | None, batch: int | None
) -> dict[str, Any]:
    """Return the core predictor's options that do not depend on the inputs, checked."""
    keywords = {
        "tile": None,
        "force_tile": True,  # the pipeline states its window; it is not for us to doubt it
        "overlap": overlap,
        "memory": None,
        "blend": mode,
        "skip_air": "off",
        "precision": precision,
        "device": "cpu",
        "threads": threads,
        "batch": batch,
        "convolutions": "auto",
        "nan_to_zero": False,
        "vx": (),
    }
    try:
        return running_options(keywords) | {"network_values": True}
    except Error as error:
        raise _in_words_of_monai(error) from None


def _check_window(overlap: Sequence[float] | float, sigma_scale: Sequence[float] | float) -> None:
    """Refuse what MONAI's windows can be and dosemap's cannot."""
    if len(set(ensure_tuple_rep(overlap, 3))) > 1:
        raise invalid(f"overlap={overlap!r}", "dosemap has one for all axes")
    if any(scale != _SIGMA_SCALE for scale in ensure_tuple_rep(sigma_scale, 3)):
        raise invalid(f"sigma_scale={sigma_scale!r}", f"dosemap has {_SIGMA_SCALE}")


def _check_padding(mode: str, value: float) -> None:
    pad_first = "pad the images with monai.transforms.SpatialPad before, and crop the result"
    if mode != "constant":
        raise invalid(f"padding_mode={str(mode)!r}, and dosemap has 'constant'", pad_first)
    if value != 0:
        raise invalid(f"cval={value!r}, and dosemap pads with 0", pad_first)


def _check_inputs(inputs: object, ports: list[dict[str, Any]], model_path: str) -> None:
    if not isinstance(inputs, torch.Tensor):
        raise wrong_type("inputs", inputs, "a torch.Tensor")
    if inputs.ndim != 5:
        raise invalid(
            f"the inputs have {inputs.ndim} axes, {tuple(inputs.shape)}",
            "give (N, C, X, Y, Z), as EnsureChannelFirst and a DataLoader make it",
        )
    if not inputs.is_floating_point():
        raise invalid(f"the inputs are {inputs.dtype}", "give inputs.float()")
    if inputs.requires_grad and torch.is_grad_enabled():
        raise invalid(
            "the inputs require gradients, and dosemap has none", "call it under torch.no_grad()"
        )
    channels = sum(port["channels"] for port in ports)
    if inputs.shape[1] != channels:
        names = ", ".join(f"{port['name']} ({port['quantity']})" for port in ports)
        raise invalid(
            f"the inputs have the shape {tuple(inputs.shape)}: channels are not {channels}",
            f"the inputs of this model are {names}",
            model_path,
        )


def _refuse_arguments(args: tuple[object, ...], kwargs: dict[str, Any]) -> None:
    """Nothing of what a network would get is left aside in silence."""
    for keyword in ("buffer_steps", "buffer_dim"):
        kwargs.pop(keyword, None)
    if kwargs.get("condition", ...) is None:
        del kwargs["condition"]
    if args or kwargs:
        named = ", ".join([f"{len(args)} without names"] * bool(args) + list(kwargs))
        raise invalid(
            f"there are arguments for the network: {named}", "dosemap's networks take none"
        )


def _plain(inputs: torch.Tensor) -> torch.Tensor:
    """Return the values alone: no meta data, whose bookkeeping costs time, and no gradients."""
    values = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
    return values.detach()


def _like(result: torch.Tensor, inputs: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return `result` as SlidingWindowInferer returns it: dtype, device, and meta data."""
    result = result.to(device=device, dtype=inputs.dtype)
    if isinstance(inputs, MetaTensor):
        meta = MetaTensor([]).copy_meta_from(inputs, copy_attr=False)  # type: ignore[no-untyped-call]
        result, *_ = convert_to_dst_type(result, meta, dtype=inputs.dtype, device=device)
    return result


def _in_words_of_monai(error: Error) -> Error:
    """Return the same error with the keywords of the inferer."""
    what, remedy = error.what, error.remedy
    for word, here in _WORDS.items():
        what, remedy = re.sub(word, here, what), re.sub(word, here, remedy)
    return type(error)(what, error.where, remedy, error.status)
