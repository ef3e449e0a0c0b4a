# SPDX-License-Identifier: Apache-2.0
"""Decomposed layers put back together, in the operators of weights/FORMAT.md.

What a pattern finds is replaced only where the result is the same up to rounding; everything else
stays, and lower.py says of it what it cannot do.
"""

from __future__ import annotations

import onnx_ir as ir

from dosemap_tools.importing.graph_edit import Editor
from dosemap_tools.importing.rejoin_activations import rejoin_activations
from dosemap_tools.importing.rejoin_movement import rejoin_movement
from dosemap_tools.importing.rejoin_norms import rejoin_norms
from dosemap_tools.importing.rejoin_pools import rejoin_pools
from dosemap_tools.importing.rejoin_resampling import rejoin_interpolation


def rejoin(model: ir.Model) -> list[str]:
    """Rejoin in place what a simplified model (simplify.py) spells out; return notes for people.

    Normalisations come first, since they consist of what the others would take for means and
    copies.
    """
    editor = Editor(model.graph)
    rejoin_norms(editor)
    rejoin_activations(editor)
    rejoin_pools(editor)
    rejoin_interpolation(editor)
    rejoin_movement(editor)
    return editor.finish()
