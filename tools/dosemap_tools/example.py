# SPDX-License-Identifier: Apache-2.0
"""dosemap-example: writes an example PET with organ labels and a BIDS-PET sidecar, a phantom."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

WRITTEN = """\
files:
  sub-example_pet.nii.gz    PET in Bq/mL, decay-corrected to the scan's start
  sub-example_pet.json      its BIDS-PET sidecar
  sub-example_dseg.nii.gz   organ labels; ids of TotalSegmentator's task total where it has one
  sub-example_dseg.tsv      names of the ids
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 done, 1 failed."""
    parser = argparse.ArgumentParser(
        prog="dosemap-example",
        description="Makes an example PET with organ labels and a BIDS-PET sidecar: a phantom.",
        epilog=WRITTEN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder for the files; made if it is missing")
    parser.add_argument("--seed", type=int, default=1, help="of the noise; default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        # Here, because a machine that has just been set up may have none.
        from dosemap_tools import phantom
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        print(
            "dosemap-example: numpy is missing in this Python: pip install numpy,"
            " or apt-get install python3-numpy",
            file=sys.stderr,
        )
        return 1
    try:
        paths = phantom.write(options.folder, options.seed)
    except (OSError, ValueError) as error:
        print(f"dosemap-example: {error}", file=sys.stderr)
        return 1
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
