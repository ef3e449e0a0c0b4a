# SPDX-License-Identifier: Apache-2.0
"""Commands, options and exit codes."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import BIN, MODEL, QUICK, SUV_78, dosemap

COMMANDS = ("predict", "dvh", "inspect", "forward", "bench", "doctor", "completion")


def test_help_lists_every_command() -> None:
    text = dosemap("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in text
    assert "not for clinical decisions" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str) -> None:
    result = dosemap(name, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"Usage: dosemap {name} ")
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert all(line == line.rstrip() for line in result.stdout.splitlines())


def test_version() -> None:
    assert dosemap("--version").stdout.startswith("dosemap 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Usage"),
        (("frobnicate",), "'frobnicate' is not a command"),
        (("predict",), "no PET given"),
        (("predict", "a.nii"), "-o OUT.nii.gz, or --out-dir DIR"),
        (("predict", "a.nii", "b.nii", "-o", "c.nii"), "use --out-dir"),
        (("predict", "a.nii", "-o", "b.nii", "--overlap", "0.95"), "from 0 to 0.9"),
        (("predict", "a.nii", "-o", "b.nii", "--overlap", "nan"), "from 0 to 0.9"),
        (("predict", "a.nii", "-o", "b.nii", "--blend", "round"), "gaussian|constant"),
        (("predict", "a.nii", "-o", "b.nii", "--tile", "3,4"), "not '3,4'"),
        (("predict", "a.nii", "-o", "b.nii", "--tile", "-32"), "not '-32'"),
        (("predict", "a.nii", "-o", "b.nii", "--skip-air", "much"), "not 'much'"),
        (("predict", "a.nii", "-o", "b.nii", "--precision", "int8"), "not 'int8'"),
        (("predict", "a.nii", "-o", "b.nii", "--vx", "5,,6"), "not '5,,6'"),
        (("predict", "a.nii", "-o", "b.nii", "--threads", "0"), "from 1 to"),
        (("predict", "a.nii", "-o", "b.nii", "--nonsense"), "nonsense"),
        (("predict", "x/a.nii", "y/a.nii", "--out-dir", "z"), "would both write z/a_dose.json"),
        (
            ("predict", "a_pet.nii", "a_pet.nii.gz", "--out-dir", "z"),
            "a_pet.nii and a_pet.nii.gz would both write z/a_dose.json: rename one",
        ),
        (("predict", "a.nii", "-o", "b.nii", "--units", "Bq/mL"), "suv|bqml|kbqml"),
        (("predict", "a.nii", "-o", "b.nii", "--radionuclide", "Xx9"), "'Xx9' is unknown"),
        (("predict", "a.nii", "-o", "b.nii", "--activity", "7400"), "--activity GBQ wants"),
        (("--vrsion",), "'--vrsion' is no option"),
        (("dvh", "a.nii"), "--labels"),
        (("completion", "tcsh"), "not 'tcsh'"),
    ],
)
def test_usage_errors_exit_2(arguments: tuple[str, ...], message: str) -> None:
    result = dosemap(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_other_programs_are_commands(tmp_path: Path) -> None:
    script = tmp_path / "dosemap-hello"
    script.write_text('#!/bin/sh\necho "hello $1"\nexit 1\n')
    script.chmod(0o755)
    result = dosemap("hello", "there", env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert (result.stdout, result.returncode) == ("hello there\n", 1)


def test_completion_completes() -> None:
    script = dosemap("completion", "bash").stdout
    for words, offered in (
        ("predict --bo", "--body-weight"),
        ("predict --units k", "kbqml"),
        ("predict --device c", "cpu cuda"),
        ("predict --skip-air ''", "off"),
        ("bench --scenario s", "single-stream"),
    ):
        probe = f"COMP_WORDS=(dosemap {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _dosemap"
        result = subprocess.run(
            ["bash", "-c", f"{script}\n{probe}; echo ${{COMPREPLY[@]}}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert result.stdout.strip() == offered
    assert "complete -c dosemap" in dosemap("completion", "fish").stdout


def test_doctor() -> None:
    report = json.loads(dosemap("doctor", "--json").stdout)
    assert str(MODEL) in json.dumps(report)
    text = dosemap("doctor").stdout
    assert "oneDNN" in text and "NIfTI" in text


def test_inspect() -> None:
    text = dosemap("inspect", MODEL).stdout
    assert "constructed" in text.lower() and "GFLOP" in text
    report = json.loads(dosemap("inspect", MODEL, "--json").stdout)
    assert report["card"]["trained"] is False
    assert dosemap("inspect", MODEL, "--tile", "20").returncode == 1


def test_quiet_prints_nothing(pet: Path, tmp_path: Path) -> None:
    result = dosemap("predict", pet, *SUV_78, *QUICK, "-q", "-o", tmp_path / "out.nii.gz")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_progress_bar_only_on_a_terminal(pet: Path, tmp_path: Path) -> None:
    command = f"{BIN} predict {pet} {' '.join(SUV_78 + QUICK)} -o {tmp_path}/out.nii.gz"
    env = {**os.environ, "DOSEMAP_MODEL": str(MODEL)}
    on_terminal = subprocess.run(
        ["script", "-qec", command, "/dev/null"], env=env, capture_output=True, text=True
    )
    if "pseudo-terminal" in on_terminal.stderr:
        pytest.skip("no pseudo-terminal can be had here")
    assert "%" in on_terminal.stdout
    assert "%" not in dosemap(*command.split()[1:]).stderr


def test_no_space_on_standard_output() -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [str(BIN), "--help"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert result.returncode == 1
