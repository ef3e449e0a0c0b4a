# SPDX-License-Identifier: Apache-2.0
"""Errors: kinds, words, and what is said of each keyword that is stated wrongly."""

import copy
import datetime
import decimal
import errno
import math
import pickle
import re
import zoneinfo

import dosemap
import numpy as np
import pytest
from dosemap import _errors, _keywords
from program import ROOT

KINDS = {
    dosemap.FileError: (10, OSError),
    dosemap.FormatError: (20, ValueError),
    dosemap.InvalidValueError: (30, ValueError),
    dosemap.UnsupportedError: (40, NotImplementedError),
    dosemap.OutOfMemoryError: (50, MemoryError),
    dosemap.DeviceError: (60, RuntimeError),
    dosemap.CancelledError: (70, Exception),
}


@pytest.fixture
def tiny(tiny_path):
    return dosemap.load_model(tiny_path)


# ---- Exceptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind):
    status, base = KINDS[kind]
    error = _errors.error_of(status, "pet.nii", "it is wrong", "correct it")
    assert type(error) is kind and isinstance(error, base) and isinstance(error, dosemap.Error)
    assert (error.where, error.what, error.remedy) == ("pet.nii", "it is wrong", "correct it")
    assert error.status == status
    assert str(error) == "pet.nii: it is wrong; correct it"
    assert str(kind("it is wrong")) == "it is wrong"


ALL = [*KINDS, dosemap.Error, dosemap.FileMissingError, dosemap.MissingPackageError]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_errors_travel(kind, again):
    """From one process to another, as of a pool of workers."""
    error = kind("what", "where", "remedy", 30)
    error.add_note("a note") if hasattr(error, "add_note") else None
    other = again(error)
    assert type(other) is kind and str(other) == str(error) == "where: what; remedy"
    assert vars(other).items() >= {"what": "what", "remedy": "remedy", "status": 30}.items()
    assert kind.__module__ == "dosemap" and getattr(dosemap, kind.__name__) is kind


def test_an_error_of_files(tiny, tmp_path):
    missing = tmp_path / "missing.nii"
    with pytest.raises(FileNotFoundError) as caught:
        tiny.predict(missing)
    error = caught.value
    assert isinstance(error, dosemap.FileError) and error.errno == errno.ENOENT
    assert error.filename == error.where == str(missing)
    assert pickle.loads(pickle.dumps(error)).filename == str(missing)
    with pytest.raises(FileNotFoundError):
        dosemap.load_model(tmp_path / "missing.safetensors")
    with pytest.raises(dosemap.FileError) as caught:
        tiny.predict(tmp_path)
    assert not isinstance(caught.value, FileNotFoundError)
    (tmp_path / "text.nii").write_text("not a NIfTI file")
    with pytest.raises(dosemap.FormatError) as caught:
        tiny.predict(tmp_path / "text.nii")
    assert caught.value.where == str(tmp_path / "text.nii")


def test_the_pet_is_named(tiny, pet):
    """As by the command line, where the library itself names no file."""
    with pytest.raises(dosemap.InvalidValueError) as caught:
        tiny.predict(pet, units="bqml")
    assert caught.value.where == str(pet.with_name("sub-1_pet.json"))
    pet.with_name("sub-1_pet.json").unlink()
    with pytest.raises(dosemap.InvalidValueError) as caught:
        tiny.predict(pet)
    assert caught.value.where == str(pet) and str(caught.value).startswith(f"{pet}: ")
    assert "in the sidecar" in caught.value.remedy


def test_an_image_in_memory_has_no_sidecar(tiny, pet_data, affine):
    injected = {"units": "bqml", "injected_mbq": 100}
    for keywords in ({}, {"units": "suv"}, {"units": "bqml"}, injected,
                     {**injected, "decay_correction": "none"}):  # fmt: skip
        with pytest.raises(dosemap.InvalidValueError) as caught:
            tiny.predict(pet_data, affine=affine, **keywords)
        assert "in the sidecar" not in caught.value.remedy, caught.value
        assert "**dosemap.pet_info(PATH)" in caught.value.remedy


# ---- Words ---------------------------------------------------------------------------------------

SAID = {
    "give --body-weight KG, or PatientWeight in the sidecar":
        "give body_weight_kg=KG, or PatientWeight in the sidecar",
    "give --units suv|bqml|kbqml, or Units": "give units='suv'|'bqml'|'kbqml', or Units",
    "give --injection-time HH:MM:SS, or TimeZero": "give injection_time='HH:MM:SS', or TimeZero",
    "give --half-life S or --radionuclide NAME, or":
        "give half_life_s=S or radionuclide='NAME', or",
    "correct --residual or --injected": "correct residual_mbq or injected_mbq",
    "give the CT with --ct FILE": "give the CT with ct=FILE",
    "with --nan-to-zero": "with nan_to_zero=True",
    "nevertheless: --ct-is-hu": "nevertheless: ct_is_hu=True",
    "bring them there (--resample-labels)": "bring them there (resample_labels=True)",
    "use --device cpu, or": "use device='cpu', or",
    "leave --convolutions out, or use --device cuda":
        "leave convolutions out, or use device='cuda'",
    "--convolutions own is for CUDA": "convolutions='own' is for CUDA",
    "use --precision float32 or --precision bf16":
        "use precision='float32' or precision='bf16'",
    "use --tile 32 or 48": "use tile=32 or 48",
    "use --tile auto, a smaller --tile or fewer --threads; or raise --memory":
        "use tile='auto', a smaller tile or fewer threads; or raise memory",
    "more than --memory allows": "more than memory allows",
    "give --overlap a share from 0": "give overlap a share from 0",
    "give --activity in GBq": "give activity_gbq in GBq",
    "name weights with --model FILE or $DOSEMAP_MODEL":
        "name weights with load_model(FILE) or $DOSEMAP_MODEL",
    "use the patch, or --force-tile to accept": "use the patch, or force_tile=True to accept",
    "see 'dosemap doctor', or use --device cpu": "see dosemap.doctor(), or use device='cpu'",
    "run 'dosemap bench --tune' again": "run 'dosemap bench --tune' again",
    "'nvidia-smi --list-gpus' lists them": "'nvidia-smi --list-gpus' lists them",
    "a dash -- and a-b--c stay": "a dash -- and a-b--c stay",
}  # fmt: skip


@pytest.mark.parametrize("text", SAID)
def test_words_of_the_command_line(text):
    assert _errors.in_python(text) == SAID[text]
    assert _errors.error_of(30, "", "", text).remedy == SAID[text]
    assert _errors.error_of(30, "", text, "").what == SAID[text]


def messages_of_the_library():
    """Its literals: all of host/ but the command line, whose options these are."""
    literal = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
    for path in sorted((ROOT / "host").rglob("*.[ch]")):
        if "cli" in path.relative_to(ROOT / "host").parts:
            continue
        text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        text = re.sub(r'"\s*\n\s*"', "", text)  # a literal over several lines is one
        yield from ((path.name, match[1]) for match in literal.finditer(text))


def test_every_option_of_the_library_is_known():
    option = re.compile(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*")
    named = {word for _, text in messages_of_the_library() for word in option.findall(text)}
    assert len(named) >= 25 and "--nan-to-zero" in named
    assert named <= _errors.KEYWORDS.keys(), named - _errors.KEYWORDS.keys()
    public = {*dosemap.Model.predict.__kwdefaults__, "load_model"}
    keywords = {word.split("=")[0] for word in _errors.KEYWORDS.values() if word}
    assert keywords <= public, keywords - public


def test_no_option_is_left_in_a_message():
    """But those of other programs, and of the benchmark, which Python does not have."""
    others = {"--tune", "--size", "--long", "--ultra"}
    for file, text in messages_of_the_library():
        said = re.sub(r"'(dosemap|nvidia-smi) [^']*'", "", _errors.in_python(text))
        left = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", said)) - others
        assert not left, (file, text)


# ---- Keywords stated wrongly ---------------------------------------------------------------------

VALUES = {
    "units": ["foo", "", "g/ml", "SUVlbm", "suv\0", "\udcff"],
    "decay_correction": ["START", "injected"],
    "radionuclide": ["Xx99", "", "Ga68\0", "\udcff"],
    "body_weight_kg": [0, 0.5, 501, -70, math.nan, math.inf],
    "injected_mbq": [0, -1, 1e7, math.nan],
    "residual_mbq": [-1, math.nan],
    "half_life_s": [0, -5, math.nan, math.inf],
    "injection_time": ["yesterday", "25:00:00", "093000", math.nan, "\udcff"],
    "scan_time": ["", "10:61", math.inf],
    "activity_gbq": [0, -7.4, 201, 7400, math.nan],
    "vx": [(-1,), (5, math.nan), -3.0, [10**400], [-(10**400)]],
    "tile": [0, -1, (0, 8, 8), (8, 8), (8, 8, 8, 8), "big", "32", "8,8,8", 10**6, []],
    "overlap": [-0.1, 0.95, 50, math.nan],
    "blend": ["linear", "Gaussian"],
    "skip_air": ["on", math.nan, math.inf],
    "precision": ["float64", "fp32", "half"],
    "device": ["gpu", "cuda:x", "tpu", "", "cpu\0", "\udcff"],
    "threads": [0, -1, 5000],
    "batch": [0, 1025],
    "memory": [0, -1, "4 GB", "lots", "", "0G", 2**61],
    "convolutions": ["cudnn"],
}


@pytest.mark.parametrize("keyword, value", [(k, v) for k, values in VALUES.items() for v in values])
def test_values_out_of_range(tiny, pet, keyword, value):
    with pytest.raises(dosemap.InvalidValueError) as caught:
        tiny.predict(pet, **{keyword: value})
    text = str(caught.value)
    assert keyword in text or f"{keyword} '{value}'" in text or repr(value) in text, text
    assert caught.value.remedy and "--" not in text, text


TYPES = {
    "units": [3, b"suv", ["suv"], np.eye(4)],
    "decay_correction": [True],
    "radionuclide": [68],
    "body_weight_kg": ["70", True, None.__class__, [70], np.array([70, 80]), 70j, b"70"],
    "injected_mbq": ["150 MBq", np.True_],
    "residual_mbq": [{}],
    "half_life_s": ["4062"],
    "injection_time": [[10, 0, 0], True, b"10:00", datetime.date(2024, 1, 1)],
    "scan_time": [datetime.timedelta(hours=1), {}],
    "activity_gbq": ["7.4", False],
    "vx": ["5,10", b"5", [None], ["5"], object()],
    "tile": [8.5, True, (8.0, 8, 8), object(), {"x": 8}, [None, 8, 8]],
    "overlap": ["half"],
    "blend": [0, None],
    "skip_air": [True, [1]],
    "precision": [32, None, np.float32],
    "device": [0, None, ["cuda:0"]],
    "threads": [2.0, "all", True],
    "batch": ["auto"],
    "memory": [4e9, True, ["4G"]],
    "force_tile": [1, "yes", None],
    "nan_to_zero": [1, None],
    "ct_is_hu": ["HU"],
    "resample_labels": [0],
    "convolutions": [None],
    "labels": [3.5j, b"x"],
}


@pytest.mark.parametrize("keyword, value", [(k, v) for k, values in TYPES.items() for v in values])
def test_values_of_another_type(tiny, pet, keyword, value):
    with pytest.raises(TypeError, match=f"^{keyword}"):
        tiny.predict(pet, **{keyword: value})


def test_every_keyword_is_tried():
    """What is not among those above has tests of its own in test_images.py, or of progress."""
    others = {"affine", "ct", "ct_affine", "label_names", "progress"}
    assert VALUES.keys() | TYPES.keys() | others == dosemap.Model.predict.__kwdefaults__.keys()


def test_names_that_there_are_not():
    with pytest.raises(AttributeError, match=r"there is dosemap\.load_model\(\)\.predict"):
        dosemap.predict("pet.nii")
    with pytest.raises(AttributeError, match=r"'something'$"):
        _ = dosemap.something


def test_a_keyword_that_there_is_not(tiny, pet):
    with pytest.raises(TypeError, match="unit"):
        tiny.predict(pet, unit="suv")
    with pytest.raises(TypeError, match="positional"):
        tiny.predict(pet, "out.nii.gz")


@pytest.mark.parametrize("units", ["suv", "SUV", "bqml", "Bq/mL", "BQML", "kBq/mL", "kbqml"])
def test_spellings_of_units(tiny, pet, units):
    """As DICOM and sidecars have them."""
    p = tiny.predict(pet, units=units, injected_mbq=100, decay_correction="injection")
    word = units.lower().replace("/", "")
    same = tiny.predict(pet, units=word, injected_mbq=100, decay_correction="injection")
    assert p.dose.tobytes() == same.dose.tobytes()


def test_numbers_of_any_kind(tiny, pet):
    expected = tiny.predict(pet, body_weight_kg=70.0, threads=1, tile=16).dose.tobytes()
    for kind in (int, np.float32, np.int16, decimal.Decimal, np.array):
        threads = np.int64(1)
        p = tiny.predict(pet, body_weight_kg=kind(70), threads=threads, tile=np.full(3, 16))
        assert p.dose.tobytes() == expected


# ---- Times ---------------------------------------------------------------------------------------


def test_forms_of_times():
    def seconds(value):
        return _keywords._seconds("scan_time", value)

    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    assert seconds("11:02:30.5") == seconds(datetime.time(11, 2, 30, 500000)) == 39750.5
    assert seconds("3600") == seconds(3600) == seconds(np.float32(3600)) == seconds("3600s") == 3600
    moment = datetime.datetime(2024, 2, 29, 23, 59, 58)
    assert (
        seconds(moment)
        == seconds("2024-02-29T23:59:58")
        == moment.replace(tzinfo=datetime.timezone.utc).timestamp()
    )
    aware = datetime.datetime(2024, 7, 1, 12, tzinfo=berlin)
    assert seconds(aware) == aware.timestamp()
    assert seconds(np.datetime64("2024-02-29T23:59:58", "ns")) == seconds(moment)
    with pytest.raises(dosemap.InvalidValueError, match=r"scan_time: .*HHMMSS.*seconds with an s"):
        seconds("110230")


def test_times_of_two_kinds(tiny, pet):
    keywords = {"units": "bqml", "injected_mbq": 150, "decay_correction": "start",
                "radionuclide": "Ga68"}  # fmt: skip
    day = datetime.datetime(2024, 2, 29, 10)
    later = day + datetime.timedelta(hours=1)
    expected = tiny.predict(pet, injection_time="10:00", scan_time="11:00", **keywords).dose
    for first, second in (
        (day, later),
        (day.time(), later.time()),
        (day.isoformat(), later),
        (day.replace(tzinfo=datetime.timezone.utc), later.replace(tzinfo=datetime.timezone.utc)),
        (36000, 39600.0),
    ):
        p = tiny.predict(pet, injection_time=first, scan_time=second, **keywords)
        assert p.dose.tobytes() == expected.tobytes()
    with pytest.raises(dosemap.InvalidValueError, match="injection_time is a time of day with"):
        aware = datetime.time(10, tzinfo=datetime.timezone.utc)
        tiny.predict(pet, injection_time=aware, scan_time="11:00", **keywords)
    with pytest.raises(dosemap.InvalidValueError, match="time zone"):
        aware = day.replace(tzinfo=datetime.timezone.utc)
        tiny.predict(pet, injection_time=aware, scan_time=later, **keywords)
    with pytest.raises(dosemap.InvalidValueError, match=r"injection_time and scan_time, both"):
        tiny.predict(pet, injection_time=later, scan_time=day, **keywords)


def test_a_radionuclide_that_is_not_in_the_list(tiny, pet):
    """Its half-life will do, as from a sidecar; with neither it is asked for."""
    keywords = {"units": "bqml", "injected_mbq": 150, "decay_correction": "start",
                "injection_time": 0, "scan_time": 3600}  # fmt: skip
    p = tiny.predict(pet, radionuclide="Mn52", half_life_s=4.83e5, **keywords)
    same = tiny.predict(pet, half_life_s=4.83e5, **keywords)
    assert p.dose.tobytes() == same.dose.tobytes()
    with pytest.raises(dosemap.InvalidValueError, match=r"radionuclide='Mn52'.*half_life_s"):
        tiny.predict(pet, radionuclide="Mn52", **keywords)
