# SPDX-License-Identifier: Apache-2.0
"""tools/example_import, and that what tools/README.md shows are commands that there are."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is missing: the example is not run")
pytest.importorskip("onnxscript", reason="ONNX is missing: the example is not run")

from dosemap_tools import weights_file
from dosemap_tools.importing import command
from program import BINARY

ROOT = Path(__file__).resolve().parents[2]


def test_example(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/example_import"), str(tmp_path / "new/folder")],
        env=os.environ | {"DOSEMAP_BIN": str(BINARY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "the same"
    errors = re.findall(r"relative L2 to PyTorch (\S+)", done.stdout)
    assert len(errors) == 3 and all(0 <= float(error) <= 1e-5 for error in errors)
    made = [
        weights_file.read(tmp_path / f"new/folder/network{suffix}.safetensors.zst")
        for suffix in (".pt", ".pt2", ".onnx")
    ]
    for file in made:
        assert file.card["name"] == "example-dosegan-16"
        assert sum(values.size for values in file.tensors.values()) > 1.9e6
        rows = file.card["import"]["proof"]["deviations"]
        assert rows and max(row["relative_l2"] for row in rows) <= 1e-5


def test_options_and_card_of_the_guide():
    """Every option that tools/README.md names exists, and its card has what a card needs."""
    text = (ROOT / "tools/README.md").read_text()
    known = set(command._parser()._option_string_actions)
    named = {option for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)}
    others = {"--model", "--ct", "--compare", "--state-dict"}  # of dosemap's own commands
    assert {"--network", "--spatial-axes", "--patch-file"} <= named
    assert named - others <= known
    (card,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert {"spatial_axes", "orientation", "inputs", "outputs"} <= json.loads(card).keys()
