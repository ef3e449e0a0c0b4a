# SPDX-License-Identifier: Apache-2.0
"""From a network trained elsewhere to a dosemap weights file: `dosemap import`.

    source -> onnx_ir.Model -> simplify -> rejoin -> lower -> Network -> weights file -> proof

Sources are read by checkpoint.py, program_file.py, torch_network.py and onnx_file.py; everything
behind them is the same for all.
"""
