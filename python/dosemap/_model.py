# SPDX-License-Identifier: Apache-2.0
"""Networks, and predicting with them."""

from __future__ import annotations

import datetime
import json
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from . import _core, _errors, _images, _installation
from ._keywords import (
    Number,
    PathLike,
    Tile,
    Time,
    choice,
    count,
    device_of,
    flag,
    is_path,
    number,
    path_of,
    quantification,
    running_options,
    thresholds_of,
)
from ._prediction import Prediction, Sources
from ._progress import Progress, reporting

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ._images import Affine, ImageLike, LabelNames, LabelsLike

# Of the PET's activity. Below, the table's end or the arms may be outside of the CT; or it is
# another patient's.
_COVERED_ENOUGH = 0.95
_SIDECAR_BYTES = 512  # of its path, as much as C keeps


def load_model(path: PathLike | None = None) -> Model:
    """Read a network with its weights.

    Args:
        path: a weights file (``.safetensors.zst`` or ``.safetensors``). None: ``$DOSEMAP_MODEL``,
            or else the one that is installed, as the command line finds it.

    Raises:
        FileError: there is no such file, or it cannot be read.
        FormatError: it is no weights file, or damaged.

    Example:
        >>> model = dosemap.load_model()
        >>> model.name
        'dosegan-16-constructed'

    """
    return Model(
        _core.Model.load(_core.default_model_path() if path is None else path_of("path", path))
    )


# ---- Predictors that wait for the next PET -------------------------------------------------------


class Loan:
    """A predictor of the core as long as it is lent.

    The frames of an exception's traceback, which notebooks keep, hold this, and not its memory.
    """

    def __init__(self, core: _core.Predictor | None) -> None:
        self.core = core

    def run(self, *args: Any) -> _core.Prediction:  # noqa: ANN401
        """Predict, with the arguments of the core's."""
        assert self.core is not None
        return self.core.run(*args)


class _Pool:
    """Models made ready, with what they need of memory. No thread ever waits for another's.

    Kept for the next PET are as many, those in use included, as ever were in use at once: those
    that were used last, whatever their options. So a thread for each GPU keeps its own, and where
    there has only been one thread, it keeps one, however it changes its options.
    """

    def __init__(self) -> None:
        self._of_parent: object = None
        self._start()
        _pools.add(self)

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[tuple[Any, ...], _core.Predictor]] = []  # the last one used last
        self._in_use = self._most = 0

    @contextmanager
    def predictor(self, model: _core.Model, options: dict[str, Any]) -> Iterator[Loan]:
        """One for this thread alone. What fails is not kept."""
        key = tuple(sorted(options.items()))
        loan = Loan(self._take(key))
        worked = False
        try:
            if loan.core is None:
                loan.core = _core.Predictor(model, **options)
            yield loan
            worked = True
        finally:
            with self._lock:
                self._in_use -= 1
                if worked and loan.core is not None:
                    self._idle.append((key, loan.core))
            loan.core = None

    def _take(self, key: tuple[Any, ...]) -> _core.Predictor | None:
        """Take an idle one with these options; else make room for a new one's memory."""
        dropped = []  # released without the lock
        with self._lock:
            found = next((i for i, idle in enumerate(self._idle) if idle[0] == key), None)
            predictor = None if found is None else self._idle.pop(found)[1]
            self._in_use += 1
            self._most = max(self._most, self._in_use)
            while len(self._idle) + self._in_use > self._most:
                dropped.append(self._idle.pop(0))
        return predictor

    def forget(self) -> None:
        """Start afresh in a forked child.

        The lock may be held by a thread that is not here, and devices are the parent's.
        """
        self._of_parent = self._idle
        self._start()


_pools: weakref.WeakSet[_Pool] = weakref.WeakSet()


def _forget_all() -> None:
    for pool in _pools:
        pool.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)

# ---- The model -----------------------------------------------------------------------------------


class Model:
    """A network that makes a dose map of a PET (and a CT); made by :func:`dosemap.load_model`.

    Any number of threads may use one model at a time. The memory that a prediction takes beside
    the images is kept for the next one until the model is deleted, as often as there were
    predictions at once. A model can be pickled: what is pickled is the path of its file, which is
    read again.
    """

    __slots__ = ("__weakref__", "_core", "_path", "_pool")

    def __init__(self, core: _core.Model) -> None:
        self._core = core
        self._path = os.path.abspath(core.path)
        self._pool = _Pool()

    @property
    def name(self) -> str:
        """The network's name."""
        return self._core.name

    @property
    def path(self) -> str:
        """The file that it was read from."""
        return self._core.path

    @property
    def card(self) -> dict[str, Any]:
        """What its makers say of it: summary, licence, data, limits, whether it was trained."""
        card: dict[str, Any] = json.loads(self._core.card_json)
        return card

    @property
    def graph(self) -> dict[str, Any]:
        """Inputs, outputs, patch and voxel size, operators; ``weights/FORMAT.md`` explains them."""
        graph: dict[str, Any] = json.loads(self._core.graph_json)
        return graph

    @property
    def takes_ct(self) -> bool:
        """Whether it wants a CT beside the PET."""
        return self._core.takes("hu")

    def __repr__(self) -> str:
        images = "PET and CT" if self.takes_ct else "PET"
        trained = "" if self.card.get("trained") else "; NOT TRAINED"
        return f"Model({self.name!r}: {images} to dose{trained}; {self.path})"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return load_model, (self._path,)

    def __copy__(self) -> Model:
        return self  # nothing about it changes

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        return self

    def predict(
        self,
        pet: ImageLike,
        *,
        affine: Affine = None,
        units: Literal["suv", "bqml", "kbqml"] | None = None,
        body_weight_kg: Number = None,
        injected_mbq: Number = None,
        residual_mbq: Number = None,
        radionuclide: str | None = None,
        half_life_s: Number = None,
        injection_time: Time = None,
        scan_time: Time = None,
        decay_correction: Literal["injection", "start", "none"] | None = None,
        activity_gbq: Number = None,
        ct: ImageLike | None = None,
        ct_affine: Affine = None,
        ct_is_hu: bool = False,
        labels: LabelsLike | None = None,
        label_names: LabelNames = None,
        resample_labels: bool = False,
        vx: Number | npt.ArrayLike = (),
        tile: Tile = None,
        overlap: Number = None,
        blend: Literal["gaussian", "constant"] = "gaussian",
        skip_air: Number | Literal["off"] = None,
        precision: Literal["auto", "float32", "bf16", "fp16", "tf32"] = "auto",
        device: str = "auto",
        threads: int | None = None,
        batch: int | None = None,
        memory: int | str | None = None,
        force_tile: bool = False,
        convolutions: Literal["auto", "library", "own"] = "auto",
        nan_to_zero: bool = False,
        progress: Progress = None,
    ) -> Prediction:
        """Predict the dose map of one PET, as ``dosemap predict`` does, with the same bytes.

        The dose map has the PET's grid. What is needed and not known is asked for by an error that
        names the keyword; nothing is ever guessed.

        Args:
            pet: a file (NIfTI; the BIDS-PET or dcm2niix sidecar beside it is read, and keywords
                override it), a nibabel image, a :class:`dosemap.Volume`, MONAI's MetaTensor or
                TorchIO's image with one channel, or an array (x, y, z) with ``affine``. Of images
                in memory no sidecar is read; ``**dosemap.pet_info(path)`` gives its keywords. Real
                numbers of any type, strides and byte order; float32 with x fastest is not copied.
            affine: of an array: 4 x 4, from voxel indices (i, j, k, 1) to millimetres in RAS.
            units: of the PET's values: ``"suv"`` (by body weight, g/mL), ``"bqml"`` (Bq/mL) or
                ``"kbqml"``.
            body_weight_kg: 1 to 500; needed for SUV, not for Bq/mL.
            injected_mbq: activity injected for the PET, at the injection time; MBq, 0.001 to 1e6.
            residual_mbq: left in the syringe, at the injection time; MBq.
            radionuclide: of the PET, as in ``"Ga68"`` or ``"F18"``: gives the half-life.
            half_life_s: of the PET's radionuclide; seconds.
            injection_time: ``"HH:MM:SS"``, date and time, seconds, or Python's time or datetime.
            scan_time: start of the series, written as the injection time is.
            decay_correction: the time to which the image is corrected: ``"injection"``, ``"start"``
                (of the series) or ``"none"``.
            activity_gbq: therapy activity administered, GBq, to 200: the map is then in Gy, without
                it in Gy/GBq.
            ct: for networks that take one: a CT in HU, any image that ``pet`` may be. It is brought
                onto the PET's grid.
            ct_affine: of a CT that is an array; None: it lies on the PET's grid.
            ct_is_hu: take its values as HU whatever they look like.
            labels: structures for DVHs: a label map as file, image or array (of whole numbers on
                the PET's grid), a folder with a mask for each structure, or a dict from names to
                masks, which may overlap.
            label_names: names of the ids: ``{1: "liver"}``, a JSON or TSV file, or
                ``"totalsegmentator:total"``.
            resample_labels: bring labels from another grid onto the PET's by nearest neighbour.
            vx: doses (in the map's unit) for which the volume that receives them is wanted.
            tile: window in voxels of the model grid: a number, three (x, y, z), ``"whole"`` or
                ``"auto"``; None: the training patch.
            overlap: of neighbouring windows, 0 to 0.9; None: 0.5, and as the tile wants it.
            blend: weighting of overlapping windows.
            skip_air: windows whose maximum uptake lies below it are not run; ``"off"``: all are;
                None: the model's.
            precision: arithmetic of the network; ``"auto"``: the fastest that the model's card
                vouches for.
            device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:0,1"`` or a ``torch.device``.
            threads: of the CPU, 1 to 4096; None: ``OMP_NUM_THREADS``, then all cores.
            batch: windows for each call of the network, 1 to 1024; None: chosen.
            memory: to stay within: bytes, or as in ``"4G"``; None: what the machine leaves.
            force_tile: allow another tile than the patch where the network normalises each patch.
            convolutions: who computes them on a CUDA device.
            nan_to_zero: take NaN and Inf voxels as 0 instead of failing.
            progress: True for a bar (tqdm), or a function that receives the share done (0 to 1) and
                the stage, in this thread; if it returns something true the prediction is cancelled.

        Returns:
            The dose map, its DVHs and its provenance.

        Raises:
            InvalidValueError: an argument or a voxel is missing or out of range.
            FileError, FormatError, UnsupportedError: of files.
            DeviceError, OutOfMemoryError: of the machine.
            CancelledError: ``progress`` asked to stop. Ctrl-C raises KeyboardInterrupt, as ever.
            TypeError: an argument is of a type that it cannot be.

        The GIL is released meanwhile. Threads may predict with one model at the same time: each has
        memory of its own for it. Do not write to an array while it is predicted.

        Example:
            >>> model = dosemap.load_model()
            >>> pet = dosemap.read("pet.nii.gz")
            >>> p = model.predict(pet.data, affine=pet.affine, units="suv", body_weight_kg=78.7)
            >>> p
            Prediction(dose: Gy/GBq, 32 x 24 x 20 voxels of 4 x 4 x 5 mm; model: \
dosegan-16-constructed (NOT TRAINED))

        """
        keywords = {name: value for name, value in locals().items() if name not in ("self", "pet")}
        return _predict(self, pet, keywords)

    @contextmanager
    def _predictor(self, **options: Any) -> Iterator[Loan]:  # noqa: ANN401
        """Lend a predictor of the core with these options to this thread."""
        if options.get("device") != "cpu":
            _installation.use_pypi_cudnn()
        with self._pool.predictor(self._core, options) as predictor:
            yield predictor

    def forward(
        self,
        inputs: Mapping[str, npt.ArrayLike] | npt.ArrayLike,
        *,
        precision: Literal["auto", "float32", "bf16", "fp16", "tf32"] = "auto",
        device: str = "auto",
        threads: int | None = None,
        convolutions: Literal["auto", "library", "own"] = "auto",
        progress: Progress = None,
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run the network alone on patches: no tiling, no units, no intensity transforms.

        Args:
            inputs: for each of the graph's inputs an array (patches, channels, and three axes in
                the graph's order), in the network's own values; for a network of one input also the
                array alone. All have the same number of patches and the same size.
            precision: arithmetic of the network; ``"auto"``: float32.
            device: as for :meth:`predict`; one device.
            threads: of the CPU; None: ``OMP_NUM_THREADS``, then all cores.
            convolutions: who computes them.
            progress: as for :meth:`predict`.

        Returns:
            An array for each output of the graph, by its name.

        Example:
            >>> model = dosemap.load_model()
            >>> patches = np.zeros((2, 1, 16, 16, 16))
            >>> {name: a.shape for name, a in model.forward(patches, threads=1).items()}
            {'dose': (2, 1, 16, 16, 16)}

        """
        np = _errors.numpy("forward()")
        names = [port["name"] for port in self.graph["inputs"]]
        if not isinstance(inputs, Mapping):
            if len(names) != 1:
                wanted = " and ".join(map(repr, names))
                raise _errors.wrong_type(
                    "inputs", inputs, f"a dict with an array for each of {wanted}"
                )
            inputs = {names[0]: inputs}
        arrays = [(str(name), _patches(array, str(name))) for name, array in inputs.items()]
        on = device_of(device)
        if on != "cpu":
            _installation.use_pypi_cudnn()
        with reporting(progress) as callback:
            outputs = self._core.forward(
                arrays,
                precision=choice(
                    "precision", precision, ("auto", "float32", "bf16", "fp16", "tf32")
                ),
                device=on,
                threads=count("threads", threads, 4096),
                convolutions=choice("convolutions", convolutions, ("auto", "library", "own")),
                progress=callback,
            )
        return {name: np.asarray(array) for name, array in outputs}

    def inspect(
        self,
        *,
        tile: int | Sequence[int] | None = None,
        precision: str | None = None,
        plan: str = "cpu",
        batch: int | None = None,
        windows: int | None = None,
        convolutions: str | None = None,
        device_properties: PathLike | None = None,
    ) -> dict[str, Any]:
        """Card, graph, plan and cost, as ``dosemap inspect --json`` prints them.

        The keywords are those of :func:`dosemap.inspect`.
        """
        return _installation.describe(
            self._core,
            tile=tile,
            precision=precision,
            plan=plan,
            batch=batch,
            windows=windows,
            convolutions=convolutions,
            device_properties=device_properties,
        )

    def compare(self, other: Model | PathLike) -> dict[str, Any]:
        """Say what differs between this network and another: card, graph, each of the weights.

        Example:
            >>> model = dosemap.load_model()
            >>> model.compare(model)["same"]
            True

        """
        if not isinstance(other, Model):
            other = load_model(path_of("other", other))
        _, report = self._core.compare(other._core, True)
        differences: dict[str, Any] = json.loads(report)
        return differences


def _patches(array: object, name: str) -> npt.NDArray[np.float32]:
    import numpy as np

    patches = _images.array_of(array, f"the input {name!r}")
    if patches.ndim != 5:
        raise _errors.invalid(
            f"the input {name!r} has the shape {patches.shape}",
            "give (patches, channels, and three axes)",
        )
    with np.errstate(over="ignore", invalid="ignore"):
        return np.require(np.asarray(patches), np.float32, ["C", "A"])


# ---- One prediction ------------------------------------------------------------------------------


def _shown(value: object) -> str:
    """Write down an argument for the sidecar, as far as it can be."""
    if value is None or isinstance(value, (bool, int, float, str, datetime.time, datetime.date)):
        return repr(value)
    if isinstance(value, os.PathLike):
        return repr(os.fsdecode(value))
    if isinstance(value, Mapping) and not hasattr(value, "affine"):
        return f"{{{', '.join(f'{key!r}: {_shown(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)) and all(isinstance(item, (int, float)) for item in value):
        return repr(value)
    shape = getattr(value, "shape", None)
    size = f" {' x '.join(map(str, shape))}" if isinstance(shape, tuple) and shape else ""
    return f"<{type(value).__qualname__}{size}>"


def _call(model: Model, pet: object, keywords: dict[str, Any]) -> str:
    """Write down the call, as the sidecar's command line."""
    defaults: dict[str, Any] = vars(Model)["predict"].__kwdefaults__
    given = [
        f"{name}={_shown(value)}"
        for name, value in keywords.items()
        if name != "progress" and value is not defaults[name]
    ]
    return f"dosemap.load_model({model.path!r}).predict({', '.join([_shown(pet), *given])})"


def _check_ct(model: Model, given: bool) -> None:
    if model.takes_ct and not given:
        raise _errors.invalid(
            "this model takes PET and CT, and no CT is given",
            "give the CT in HU: ct=...",
            model.path,
        )
    if given and not model.takes_ct:
        raise _errors.invalid(
            "this model takes a PET only: it would not use the CT",
            "leave ct out, or load another model",
            model.path,
        )


def _read_pet(
    pet: object, affine: Affine, keywords: dict[str, Any]
) -> tuple[_images.Image, _core.PetInfo]:
    """Read the image, and before it, as that takes longer, how to quantify it."""
    if is_path(pet):
        info = quantification(_core.PetInfo.read(path_of("pet", pet)), keywords)
        sidecar = _absolute(info.sidecar) or ""
        if sidecar.isascii() and len(sidecar) < _SIDECAR_BYTES:
            info.sidecar = sidecar
        return _images.volume_of(pet, affine, "pet"), info
    info = quantification(_core.PetInfo(), keywords)
    return _images.volume_of(pet, affine, "pet"), info


def _read_ct(
    keywords: dict[str, Any], pet: _images.Image
) -> tuple[_images.Image | None, _core.Volume | None, _core.CtInfo | None]:
    is_hu, to_air = flag("ct_is_hu", keywords["ct_is_hu"]), keywords["nan_to_zero"]
    if keywords["ct"] is None:
        for name, given in (("ct_affine", keywords["ct_affine"] is not None), ("ct_is_hu", is_hu)):
            if given:
                raise _errors.invalid(
                    f"{name} is given without ct", f"give ct, or leave {name} out"
                )
        return None, None, None
    image = _images.volume_of(keywords["ct"], keywords["ct_affine"], "ct", like=pet.volume)
    try:
        volume, info = _core.ct_onto_pet(image.volume, pet.volume, is_hu, to_air)
    except _errors.Error as error:
        error.in_file(image.path)
        raise
    if info.activity_covered < _COVERED_ENOUGH:
        outside = 100 * (1 - info.activity_covered)
        _errors.warn(
            f"{image.path or 'ct'}: {outside:.3g} % of the PET's activity lie outside of this CT, "
            "where air (-1000 HU) is assumed"
        )
    return image, volume, info


def _read_labels(
    keywords: dict[str, Any], pet: _core.Volume
) -> tuple[_core.Labels | None, str | None]:
    resample = flag("resample_labels", keywords["resample_labels"])
    if keywords["labels"] is None:
        for name, given in (
            ("label_names", keywords["label_names"] is not None),
            ("resample_labels", resample),
            ("vx", bool(thresholds_of(keywords["vx"]))),
        ):
            if given:
                raise _errors.invalid(
                    f"{name} is given without labels", f"give labels, or leave {name} out"
                )
        return None, None
    return _images.labels_of(
        keywords["labels"], keywords["label_names"], resample, pet.dim, pet.affine
    )


def _absolute(path: str | None) -> str | None:
    """Give a path that holds in other working folders, too; as it is where this one has gone."""
    try:
        return path and os.path.abspath(path)
    except OSError:
        return path


def _inputs(pet: object, keywords: dict[str, Any]) -> tuple[str, ...]:
    """Name the files that went into a prediction, which no output may overwrite."""
    images = _images.files_of(pet)
    sidecars = [f"{image[: image.rindex('.nii')]}.json" for image in images if ".nii" in image]
    names = keywords["label_names"]
    others = (keywords["ct"], keywords["labels"], names if is_path(names) else None)
    return (*images, *sidecars, *(file for other in others for file in _images.files_of(other)))


def _predict(model: Model, pet: object, keywords: dict[str, Any]) -> Prediction:
    options = running_options(keywords)
    activity = number("activity_gbq", keywords["activity_gbq"], 1e-6, 200, "GBq")
    _check_ct(model, keywords["ct"] is not None)
    image, info = _read_pet(pet, keywords["affine"], keywords)
    ct, ct_on_pet, ct_info = _read_ct(keywords, image)
    labels, labels_path = _read_labels(keywords, image.volume)
    try:
        with (
            reporting(keywords["progress"]) as callback,
            model._predictor(**options) as predictor,
        ):
            made = predictor.run(image.volume, info, ct_on_pet, ct_info, labels, activity, callback)
    except _errors.Error as error:
        if image.path is None:
            error.remedy = _errors.without_sidecar(error.remedy)
        error.in_file(image.path)
        raise
    sources = Sources(
        pet=image.volume,
        pet_path=_absolute(image.path),
        ct_path=_absolute(ct.path if ct else None),
        labels_path=_absolute(labels_path),
        call=_call(model, pet, keywords),
        threads=options["threads"],
        inputs=tuple(filter(None, map(_absolute, _inputs(pet, keywords)))),
    )
    return Prediction(made, sources, options["v_thresholds"])
