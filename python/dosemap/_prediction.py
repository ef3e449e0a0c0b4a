# SPDX-License-Identifier: Apache-2.0
"""What Model.predict() returns."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _core, _errors
from ._dvh import Dvh
from ._keywords import PathLike, count, path_of
from ._volume import Volume, nifti_image

if TYPE_CHECKING:
    import nibabel
    import numpy as np
    import numpy.typing as npt
    import pandas
    from matplotlib.figure import Figure, SubFigure

_HTML_ROWS = 12


@dataclass(frozen=True)
class Sources:
    """Where a prediction came from: for the sidecar, and not to be overwritten.

    Paths are absolute: they hold whatever becomes the working folder.
    """

    pet: _core.Volume
    pet_path: str | None
    ct_path: str | None
    labels_path: str | None
    call: str
    threads: int
    inputs: tuple[str, ...]  # files that are not to be overwritten


def _same_file(a: str, b: str) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False


class Prediction:
    """A dose map with all that belongs to it; made by :meth:`dosemap.Model.predict`.

    Example:
        >>> model = dosemap.load_model()
        >>> p = model.predict("pet.nii.gz", units="suv", body_weight_kg=78.7, activity_gbq=7.4,
        ...                   labels="organs.nii.gz")
        >>> p.dose.shape, p.dose.dtype, p.unit
        ((32, 24, 20), dtype('float32'), 'Gy')
        >>> [str(path) for path in p.save("result.nii.gz")]
        ['result.nii.gz', 'result_dvh.tsv', 'result_organs.tsv', 'result.json']

    One prediction may be read by several threads at a time.

    """

    __slots__ = ("__weakref__", "_core", "_dvh", "_sources")

    def __init__(
        self, core: _core.Prediction, sources: Sources, v_thresholds: tuple[float, ...]
    ) -> None:
        self._core = core
        self._sources = sources
        self._dvh = None if core.dvh is None else Dvh(core.dvh, self.unit, v_thresholds)

    # ---- The dose ------------------------------------------------------------------------------

    @property
    def dose(self) -> npt.NDArray[np.float32]:
        """Absorbed dose in :attr:`unit`, shape (x, y, z) of the PET, x fastest.

        A read-only view of the memory that the prediction holds; ``.copy()`` gives one to write to.
        """
        return self.volume.data

    @property
    def unit(self) -> str:
        """``"Gy"``, or ``"Gy/GBq"`` where no activity was given."""
        return str(self._provenance_entry("Units"))

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """4 x 4, from voxel indices (i, j, k, 1) to millimetres in RAS space: the PET's."""
        return self.volume.affine

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edges of a voxel along x, y, z."""
        return self.volume.spacing_mm

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        return self.volume.shape

    @property
    def volume(self) -> Volume:
        """The dose map with its place in space."""
        return Volume(self._core.dose)

    @property
    def pet(self) -> Volume:
        """The PET that was predicted from, with its stored values (of an array: the array)."""
        return Volume(self._sources.pet)

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        return self.volume.__array__(dtype, copy)

    # ---- Structures ----------------------------------------------------------------------------

    @property
    def dvh(self) -> Dvh | None:
        """Dose-volume histograms of the structures; None without ``labels``."""
        return self._dvh

    def organ_table(self) -> pandas.DataFrame:
        """One row for each structure, with the columns of the command line's organ table.

        >>> model = dosemap.load_model()
        >>> p = model.predict("pet.nii.gz", units="suv", body_weight_kg=78.7,
        ...                   labels="organs.nii.gz")
        >>> list(p.organ_table()["name"])
        ['kidney_left', 'liver']

        Raises:
            InvalidValueError: ``predict`` was given no labels.
            MissingPackageError: pandas is not installed; ``.dvh.records()`` needs none.

        """
        if self._dvh is None:
            raise _errors.invalid("there are no structures", "give predict() the keyword labels")
        return self._dvh.to_pandas()

    # ---- What it came from ---------------------------------------------------------------------

    @property
    def provenance(self) -> dict[str, Any]:
        """Options, model, device, precision, windows, seconds: what the sidecar will say."""
        provenance: dict[str, Any] = json.loads(self._core.provenance_json)
        return provenance

    def _provenance_entry(self, *keys: str) -> object:
        entry: Any = self.provenance
        for key in keys:
            entry = (entry or {}).get(key)
        return entry

    # ---- Elsewhere -----------------------------------------------------------------------------

    def to_nifti(self) -> nibabel.Nifti1Image:
        """Give a nibabel image of the dose, which is not copied, with the PET's affine.

        >>> model = dosemap.load_model()
        >>> p = model.predict("pet.nii.gz", units="suv", body_weight_kg=78.7)
        >>> p.to_nifti().shape
        (32, 24, 20)
        """
        return nifti_image(self.dose, self.affine)

    def save(self, path: PathLike, *, threads: int | None = None) -> list[Path]:
        """Write the files that ``dosemap predict -o PATH`` writes, with the same bytes.

        But for the sidecar's times and command line, and its paths, which are absolute. The files
        are the dose map (float32), ``NAME.json`` with the provenance and checksums, and with labels
        ``NAME_dvh.tsv`` and ``NAME_organs.tsv``. Each appears whole or not at all; a failure
        removes what was written. For the checksums that the sidecar names, PET, CT and labels that
        were given as files have to be there still.

        Args:
            path: ``NAME.nii``, ``NAME.nii.gz`` or ``NAME.nii.zst``. Existing files are replaced,
                but never those that the prediction came from.
            threads: that compress; None: as many as predicted. The bytes do not depend on it.

        Returns:
            The files, the dose map first.

        """
        name, sources = path_of("path", path), self._sources
        dose, sidecar, dvh, organs = _core.output_paths(name)
        outputs = [dose, dvh, organs, sidecar] if self._dvh is not None else [dose, sidecar]
        for file in sources.inputs:
            for output in outputs:
                if _same_file(file, output):
                    raise _errors.invalid(
                        f"this output would overwrite the input {file}",
                        "choose another output name",
                        output,
                    )
        self._core.write(
            name,
            pet_path=sources.pet_path,
            ct_path=sources.ct_path,
            labels_path=sources.labels_path,
            command_line=sources.call,
            threads=count("threads", threads, 4096) or sources.threads,
        )
        return [Path(output) for output in outputs]

    def plot(
        self,
        *,
        at: Sequence[int] | None = None,
        pet_max: float | None = None,
        dose_max: float | None = None,
        structures: Sequence[str] | str | None = None,
        outlines: object = None,
        figure: Figure | SubFigure | None = None,
        figsize: tuple[float, float] | None = None,
    ) -> Figure:
        """Three planes and the maximum intensity projection of PET and dose, and the DVHs.

        The keywords are those of :func:`dosemap.plot_prediction`. Needs matplotlib.
        """
        from ._plot import plot_prediction

        return plot_prediction(
            self,
            at=at,
            pet_max=pet_max,
            dose_max=dose_max,
            structures=structures,
            outlines=outlines,
            figure=figure,
            figsize=figsize,
        )

    # ---- At a glance ---------------------------------------------------------------------------

    def _model_words(self) -> str:
        name, trained = (self._provenance_entry("Model", key) for key in ("Name", "Trained"))
        return f"{name}{'' if trained else ' (NOT TRAINED)'}"

    def _facts(self) -> dict[str, str]:
        volume = repr(self.volume)
        facts = {"dose": f"{self.unit}, {volume[volume.index('(') + 1 : -1]}"}
        if self._dvh is not None:
            facts["structures"] = str(len(self._dvh))
        facts["model"] = self._model_words()
        return facts

    def __repr__(self) -> str:
        return f"Prediction({'; '.join(f'{key}: {text}' for key, text in self._facts().items())})"

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><th style='text-align:left'>{key}</th><td>{html.escape(text)}</td></tr>"
            for key, text in self._facts().items()
        ]
        return f"<table>{''.join(rows)}</table>{self._organs_html()}"

    def _organs_html(self) -> str:
        if self._dvh is None:
            return ""
        heads = (
            "structure",
            "volume (cm³)",
            *(f"{x} ({self.unit})" for x in ("mean", "D2", "D98")),
        )
        rows = ["".join(f"<th>{html.escape(head)}</th>" for head in heads)]
        for organ in list(self._dvh)[:_HTML_ROWS]:
            numbers = (organ.volume_cm3, organ.mean, organ.d2, organ.d98)
            cells = "".join(f"<td>{number:.4g}</td>" for number in numbers)
            rows.append(f"<td>{html.escape(organ.name)}</td>{cells}")
        more = len(self._dvh) - _HTML_ROWS
        if more > 0:
            rows.append(f"<td colspan='{len(heads)}'>and {more} more</td>")
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a Prediction cannot be pickled; save() it, or send its .dose, .affine and .provenance"
        )
