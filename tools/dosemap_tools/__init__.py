# SPDX-License-Identifier: Apache-2.0
"""Weights files for dosemap: written from PyTorch, constructed, and read back for tests."""

__version__ = "0.1.0"
