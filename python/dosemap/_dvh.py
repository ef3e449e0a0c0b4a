# SPDX-License-Identifier: Apache-2.0
"""Dose-volume histograms of structures, and the organ table."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from . import _core, _dose_unit, _errors, _images, _keywords

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    from matplotlib.axes import Axes

    from ._images import Affine, ImageLike, LabelNames, LabelsLike
    from ._prediction import Prediction

# Field of StructureDose and its name in the organ table; the unit is added there.
_DOSES = {
    "mean": "mean",
    "minimum": "min",
    "maximum": "max",
    "d2": "d2",
    "d50": "d50",
    "d95": "d95",
    "d98": "d98",
    "d2cc": "d2cc",
}
_IN_NAMES = {"Gy": "gy", "Gy/GBq": "gy_per_gbq"}
_CURVE_ROWS = 2000  # of one structure in the curve table, as the C library writes it
_HTML_ROWS = 30


@dataclass(frozen=True, eq=False, repr=False)
class StructureDose:
    """Dose statistics of one structure.

    Doses are in ``unit``; what is not defined is NaN. Dx is the lowest dose of the hottest x % of
    the volume, by linear interpolation of the exact sorted voxels; D2cc that of the hottest
    2 cm3. A structure without voxels has NaN everywhere and no bins.

    Attributes:
        name: of the structure.
        id: its number among the labels.
        unit: "Gy" or "Gy/GBq".
        voxels: how many.
        volume_cm3: of all its voxels.
        mean: mean dose.
        minimum: lowest dose.
        maximum: highest dose.
        d2: near-maximum dose, D2%.
        d50: median dose, D50%.
        d95: D95%.
        d98: near-minimum dose, D98%.
        d2cc: NaN for a structure smaller than 2 cm3.
        v_percent: threshold -> share of the volume (0 to 100) that receives at least that dose.
        bin_width: of the histogram.

    Example:
        >>> liver = dosemap.dvh("dose.nii.gz", "organs.nii.gz", vx=[1])["liver"]
        >>> liver.voxels, round(liver.volume_cm3, 2), liver.unit
        (480, 38.4, 'Gy')
        >>> liver.minimum <= liver.d98 <= liver.d50 <= liver.d2 <= liver.maximum
        True

    """

    name: str
    id: int
    unit: str
    voxels: int
    volume_cm3: float
    mean: float
    minimum: float
    maximum: float
    d2: float
    d50: float
    d95: float
    d98: float
    d2cc: float
    v_percent: dict[float, float]
    bin_width: float

    @property
    def histogram(self) -> npt.NDArray[np.uint64]:
        """Voxels in each dose bin, shape (bins,), uint64, read-only.

        Bin b holds doses from ``b * bin_width`` up to, not including, ``(b + 1) * bin_width``, the
        last one the maximum as well, the first one negative doses as well.

        >>> liver = dosemap.dvh("dose.nii.gz", "organs.nii.gz")["liver"]
        >>> int(liver.histogram.sum()) == liver.voxels
        True
        """
        _errors.numpy("a histogram")
        import numpy as np

        bins = vars(self)["_bins"]
        return np.frombuffer(bins, np.uint64) if isinstance(bins, bytes) else np.asarray(bins)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_bins": bytes(memoryview(vars(self)["_bins"]))}

    def curve(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Cumulative DVH: dose edges in ``unit``, and the volume in cm3 at or above each.

        Both have shape (bins + 1,), float64. The first edge is 0, where the volume is all of it;
        the last one ends the bin that holds the maximum, where it is 0. Without voxels both are
        empty.

        >>> dose, volume_cm3 = dosemap.dvh("dose.nii.gz", "organs.nii.gz")["liver"].curve()
        >>> float(dose[0]), round(float(volume_cm3[0]), 2), float(volume_cm3[-1])
        (0.0, 38.4, 0.0)
        """
        edges, above = self._edges_and_voxels()
        # In this order of operations the curve table has the same numbers.
        return edges * self.bin_width, above / max(self.voxels, 1) * self.volume_cm3

    def _edges_and_voxels(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Edges of the bins, counted from 0, and how many voxels lie at or above each."""
        counts = self.histogram
        np = _errors.numpy()
        if counts.size == 0:
            return np.empty(0, np.int64), np.empty(0, np.uint64)
        above = np.full(counts.size + 1, self.voxels, np.uint64)
        above[1:] -= np.cumsum(counts, dtype=np.uint64)
        return np.arange(counts.size + 1), above

    def __repr__(self) -> str:
        size = f"{self.voxels} voxels" if self.voxels != 1 else "1 voxel"
        dose = f", mean {self.mean:.4g} {self.unit}" if self.voxels else ""
        return f"StructureDose({self.name!r}, {size}, {self.volume_cm3:.4g} cm3{dose})"


def _structure(core: _core.Structure, unit: str, vx: Sequence[float]) -> StructureDose:
    structure = StructureDose(
        unit=unit,
        v_percent=dict(zip(vx, core.v_percent, strict=True)),
        **{
            name: getattr(core, name)
            for name in ("name", "id", "voxels", "volume_cm3", "bin_width", *_DOSES)
        },
    )
    vars(structure)["_bins"] = core.histogram  # no field: dataclasses.asdict() is for the numbers
    return structure


class Dvh:
    """Dose-volume histograms of several structures.

    A sequence of :class:`StructureDose`, in the order of the labels, which are found by position
    or by name as well.

    Example:
        >>> dvh = dosemap.dvh("dose.nii.gz", "organs.nii.gz")
        >>> dvh
        Dvh(2 structures, Gy: kidney_left, liver)
        >>> dvh["liver"].name, dvh[0].name, "spleen" in dvh, len(dvh)
        ('liver', 'kidney_left', False, 2)
        >>> [s.voxels for s in dvh]
        [96, 480]

    """

    __slots__ = ("__weakref__", "_core", "_structures", "_unit", "_vx")

    def __init__(self, core: _core.Dvh, unit: str, vx: Sequence[float] = ()) -> None:
        self._core = core
        self._unit = unit
        self._vx = tuple(vx)
        self._structures = [_structure(core.structure(i), unit, vx) for i in range(len(core))]

    @property
    def unit(self) -> str:
        """Of all doses: "Gy", or "Gy/GBq" (per administered activity)."""
        return self._unit

    @property
    def names(self) -> list[str]:
        """Of the structures, in their order."""
        return [s.name for s in self._structures]

    def __len__(self) -> int:
        return len(self._structures)

    def __iter__(self) -> Iterator[StructureDose]:
        return iter(self._structures)

    def __contains__(self, what: object) -> bool:
        if isinstance(what, str):
            return what in self.names
        return any(s is what for s in self._structures)

    @overload
    def __getitem__(self, key: int | str) -> StructureDose: ...
    @overload
    def __getitem__(self, key: slice) -> list[StructureDose]: ...
    def __getitem__(self, key: int | str | slice) -> StructureDose | list[StructureDose]:
        if isinstance(key, str):
            return self._by_name(key)
        try:
            return self._structures[key]
        except IndexError:
            count = len(self)
            message = f"there is no structure {key}: there are {count}, counted from 0"
            raise IndexError(message) from None

    def _by_name(self, name: str) -> StructureDose:
        found = [i for i, s in enumerate(self._structures) if s.name == name]
        if len(found) == 1:
            return self._structures[found[0]]
        if found:
            raise KeyError(f"{len(found)} structures are called {name!r}: take one of {found}")
        raise KeyError(f"there is no structure {name!r}; there are {', '.join(self.names)}")

    def _column(self, name: str) -> str:
        return f"{name}_{_IN_NAMES[self._unit]}"

    def _vx_column(self, threshold: float) -> str:
        return f"v{threshold:.9g}{_IN_NAMES[self._unit]}_percent"

    def records(self) -> list[dict[str, Any]]:
        """Organ table as plain Python: one dict per structure, without numpy or pandas.

        The keys are the columns of the organ table: name, id, voxels, volume_cm3, then doses with
        their unit in the name (``mean_gy`` or ``mean_gy_per_gbq``; min, max, d2, d50, d95, d98,
        d2cc) and ``v20gy_percent`` for each threshold. What is not defined is NaN.

        >>> first = dosemap.dvh("dose.nii.gz", "organs.nii.gz", vx=[20]).records()[0]
        >>> first["name"], first["voxels"], list(first)[-3:]
        ('kidney_left', 96, ['d98_gy', 'd2cc_gy', 'v20gy_percent'])
        """
        return [self._record(s) for s in self._structures]

    def _record(self, s: StructureDose) -> dict[str, Any]:
        record: dict[str, Any] = {
            "name": s.name,
            "id": s.id,
            "voxels": s.voxels,
            "volume_cm3": s.volume_cm3,
        }
        record.update((self._column(name), getattr(s, key)) for key, name in _DOSES.items())
        record.update((self._vx_column(x), share) for x, share in s.v_percent.items())
        return record

    def to_pandas(self) -> pd.DataFrame:
        """Organ table as a DataFrame: the columns of :meth:`records`, one row per structure.

        >>> table = dosemap.dvh("dose.nii.gz", "organs.nii.gz").to_pandas()
        >>> table[["name", "id", "voxels"]]
                  name  id  voxels
        0  kidney_left   1      96
        1        liver   2     480
        """
        pd = _errors.optional("pandas", "a DataFrame (.records() is the same without)")
        names = ["name", "id", "voxels", "volume_cm3"]
        names += [self._column(name) for name in _DOSES.values()]
        names += [self._vx_column(x) for x in self._vx]
        types = dict.fromkeys(names, "float64")
        types.update(name="string", id="int64", voxels="int64")
        rows = self.records()
        # Column by column: so an empty table has its types, too.
        return pd.DataFrame(
            {name: pd.Series([row[name] for row in rows], dtype=types[name]) for name in names}
        )

    def curves(self) -> pd.DataFrame:
        """Cumulative curves of all structures as a DataFrame, for seaborn and the like.

        One row per structure and dose edge: name, id, ``dose_gy`` (or ``dose_gy_per_gbq``),
        volume_cm3 and volume_percent at or above that dose: the table that :meth:`write_curves`
        writes, where more than 2000 rows of a structure are thinned evenly. All edges of one
        structure, as arrays: :meth:`StructureDose.curve`.

        >>> curves = dosemap.dvh("dose.nii.gz", "organs.nii.gz").curves()
        >>> list(curves.columns)
        ['name', 'id', 'dose_gy', 'volume_cm3', 'volume_percent']
        >>> float(curves[curves.name == "liver"].volume_percent.iloc[0])
        100.0
        """
        pd = _errors.optional("pandas", "a DataFrame (.curve() of each structure does without)")
        np = _errors.numpy()
        parts: dict[str, list[Any]] = {"name": [], "id": [], "dose": [], "share": [], "cm3": []}
        for s in self._structures:
            edges, above = s._edges_and_voxels()
            stride = max(1, -(-(edges.size - 1) // _CURVE_ROWS))
            kept = (edges % stride == 0) | (edges == edges.size - 1)
            share = above[kept] / max(s.voxels, 1)
            parts["name"] += [s.name] * share.size
            parts["id"] += [s.id] * share.size
            parts["dose"].append(edges[kept] * s.bin_width)
            parts["cm3"].append(share * s.volume_cm3)
            parts["share"].append(share * 100)
        none = np.empty(0)
        return pd.DataFrame(
            {
                "name": pd.Series(parts["name"], dtype="string"),
                "id": pd.Series(parts["id"], dtype="int64"),
                self._column("dose"): np.concatenate([none, *parts["dose"]]),
                "volume_cm3": np.concatenate([none, *parts["cm3"]]),
                "volume_percent": np.concatenate([none, *parts["share"]]),
            }
        )

    def write_organs(self, path: str | os.PathLike[str]) -> None:
        """Write the organ table as BIDS TSV, as ``dosemap dvh`` does; "n/a" is not defined."""
        self._core.write_organs(_keywords.path_of("path", path))

    def write_curves(self, path: str | os.PathLike[str]) -> None:
        """Write the curves (see :meth:`curves`) as BIDS TSV, as ``dosemap dvh`` does."""
        self._core.write_curves(_keywords.path_of("path", path))

    def plot(
        self,
        *,
        ax: Axes | None = None,
        structures: Sequence[str] | None = None,
        absolute: bool = False,
        legend: bool = True,
    ) -> Axes:
        """Draw the curves with matplotlib, as :func:`dosemap.plot_dvh` does; returns the axes."""
        from . import _plot

        return _plot.plot_dvh(self, ax=ax, structures=structures, absolute=absolute, legend=legend)

    def __reduce__(self) -> str:
        raise TypeError("a Dvh cannot be pickled; pickle its .records() or .to_pandas()")

    def __repr__(self) -> str:
        count = f"{len(self)} structure{'' if len(self) == 1 else 's'}"
        names = ", ".join(self.names[:4]) + (", ..." if len(self) > 4 else "")
        return f"Dvh({count}, {self._unit}{': ' if names else ''}{names})"

    def _repr_html_(self) -> str:
        heads = ["structure", "voxels", "cm³", "mean", "D2", "D50", "D98"]
        heads += [f"V{x:g} (%)" for x in self._vx]
        rows = [self._html_row(s) for s in self._structures[:_HTML_ROWS]]
        more = len(self) - len(rows)
        note = f"<p>and {more} more: <code>.to_pandas()</code></p>" if more > 0 else ""
        head = "".join(f"<th>{name}</th>" for name in heads)
        return (
            f"<table><caption>doses in {self._unit}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>{note}"
        )

    def _html_row(self, s: StructureDose) -> str:
        figures = [s.volume_cm3, s.mean, s.d2, s.d50, s.d98]
        figures += [s.v_percent[x] for x in self._vx]
        cells = [html.escape(s.name), str(s.voxels)]
        cells += ["n/a" if math.isnan(x) else f"{x:.4g}" for x in figures]
        return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def dvh(
    dose: ImageLike | Prediction,
    labels: LabelsLike,
    *,
    affine: Affine = None,
    label_names: LabelNames = None,
    resample_labels: bool = False,
    unit: str | None = None,
    vx: float | Iterable[float] = (),
    threads: int | None = None,
) -> Dvh:
    """Dose-volume histograms of a dose map in structures, as ``dosemap dvh`` computes them.

    Args:
        dose: path, :class:`Prediction`, nibabel image, :class:`Volume`, MetaTensor, TorchIO image,
            or array of shape (x, y, z) with ``affine``.
        labels: path of a label file or of a folder with a mask per structure; nibabel image or
            array of integers on the dose map's grid, 0 outside; or a dict of masks (name ->
            array or nibabel image, not 0 inside), which may overlap.
        affine: 4 x 4, of an array ``dose``: voxel index to millimetres in RAS+ space.
        label_names: names of the ids: a dict (id -> name), path of JSON or TSV,
            "totalsegmentator:total" or "totalsegmentator:head_glands_cavities". None: the BIDS
            table NAME.tsv beside a label file, if there is one, else "label_ID".
        resample_labels: bring labels from another grid onto the dose map's, by nearest neighbour.
        unit: "Gy" or "Gy/GBq". None: what the sidecar of a path says, or the prediction's own;
            without either it is asked for.
        vx: doses, in ``unit``, 0 or more: the volume that receives at least that much.
        threads: CPU threads; None: OMP_NUM_THREADS, then all cores.

    Raises:
        InvalidValueError: labels on another grid, a dose in a structure that is not finite, a
            negative threshold, a unit that is missing or not what the map is in.

    Example:
        >>> table = dosemap.dvh("dose.nii.gz", "organs.nii.gz", vx=[1, 2])
        >>> table.unit, table.names
        ('Gy', ['kidney_left', 'liver'])
        >>> table["liver"].v_percent.keys()
        dict_keys([1.0, 2.0])

        From memory, with masks that overlap:

        >>> import numpy as np
        >>> dose = np.full((10, 10, 10), 3.0)
        >>> masks = {"all": np.ones(dose.shape, bool), "left": np.zeros(dose.shape, bool)}
        >>> masks["left"][:5] = True
        >>> both = dosemap.dvh(dose, masks, affine=np.diag([4, 4, 5, 1]), unit="Gy")
        >>> [(s.name, s.voxels, s.mean) for s in both]
        [('all', 1000, 3.0), ('left', 500, 3.0)]

    """
    thresholds, most = _keywords.thresholds_of(vx), _keywords.count("threads", threads, 4096)
    dose, unit = _of_prediction(dose, unit)
    image = _images.volume_of(dose, affine, keyword="dose")
    per_activity = _dose_unit.find(unit, image.path) == "Gy/GBq"
    grid = image.volume
    resample = _keywords.flag("resample_labels", resample_labels)
    structures, _ = _images.labels_of(labels, label_names, resample, grid.dim, grid.affine)
    try:
        core = _core.Dvh.compute(grid, structures, thresholds, per_activity, most)
    except _errors.Error as error:
        error.in_file(image.path)
        raise
    return Dvh(core, "Gy/GBq" if per_activity else "Gy", thresholds)


def _of_prediction(dose: ImageLike | Prediction, unit: str | None) -> tuple[ImageLike, str | None]:
    """Take the dose map of a prediction, which knows its unit; others stay as they are."""
    from ._prediction import Prediction

    if not isinstance(dose, Prediction):
        return dose, unit
    if unit not in (None, dose.unit):
        raise _errors.invalid(
            f"unit={_errors.described(unit)}, but the prediction is in {dose.unit}",
            "leave the unit out",
        )
    return dose.volume, dose.unit
