# SPDX-License-Identifier: Apache-2.0
import pytest

pytest.importorskip("torch", reason="PyTorch is missing: peers are not compared")
pytest.importorskip("monai", reason="MONAI is missing: peers are not compared")
