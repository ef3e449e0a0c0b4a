# SPDX-License-Identifier: Apache-2.0
"""Network definitions: the PyTorch modules and, beside them, their graphs as JSON."""
