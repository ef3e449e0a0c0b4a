# SPDX-License-Identifier: Apache-2.0
"""cuDNN's own description of a device, as it takes it to plan for one that is not there.

    python3 device_properties.py FOLDER_OF_CUDNN OUT.json                of device 0
    python3 device_properties.py FOLDER_OF_CUDNN OUT.json --from IN.json  of one that is described

By ctypes, so that nothing has to be compiled where the device is.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

# cudnn_graph.h of cuDNN 9
DEVICEPROP_DESCRIPTOR = 38
DEVICE_ID, JSON_REPRESENTATION = 2700, 2702
TYPE_INT64, TYPE_INT32, TYPE_CHAR = 3, 23, 24


class Cudnn:
    """The few functions that this takes."""

    def __init__(self, folder: Path) -> None:
        self.library = ctypes.CDLL(str(folder / "libcudnn_graph.so.9"))
        self.library.cudnnGetErrorString.restype = ctypes.c_char_p
        self.library.cudnnGetVersion.restype = ctypes.c_size_t

    def check(self, status: int, what: str) -> None:
        """Raise what cuDNN says of a call that failed."""
        if status != 0:
            raise OSError(f"{what}: {self.library.cudnnGetErrorString(status).decode()}")

    def describe(self, description: str | None) -> str:
        """Return the JSON of device 0, or of a description."""
        made = ctypes.c_void_p()
        self.check(
            self.library.cudnnBackendCreateDescriptor(DEVICEPROP_DESCRIPTOR, ctypes.byref(made)),
            "making a description",
        )
        if description is None:
            self._set_device(made)
        else:
            text = description.encode()
            self.check(self._set(made, JSON_REPRESENTATION, TYPE_CHAR, len(text), text), "reading")
        self.check(self.library.cudnnBackendFinalize(made), "finishing the description")
        size = ctypes.c_int64()
        self.check(self._get(made, 0, size, None), "its length")
        text = ctypes.create_string_buffer(size.value + 1)
        self.check(self._get(made, size.value, size, text), "its text")
        return text.value.decode()

    def _set_device(self, made: ctypes.c_void_p) -> None:
        status = 0
        for kind, number in ((TYPE_INT32, ctypes.c_int32(0)), (TYPE_INT64, ctypes.c_int64(0))):
            status = self._set(made, DEVICE_ID, kind, 1, ctypes.byref(number))
            if status == 0:
                return
        self.check(status, "naming device 0")

    def _set(self, made: ctypes.c_void_p, name: int, kind: int, n: int, values: object) -> int:
        return self.library.cudnnBackendSetAttribute(made, name, kind, ctypes.c_int64(n), values)

    def _get(self, made: ctypes.c_void_p, room: int, n: ctypes.c_int64, text: object) -> int:
        return self.library.cudnnBackendGetAttribute(
            made, JSON_REPRESENTATION, TYPE_CHAR, ctypes.c_int64(room), ctypes.byref(n), text
        )


def main() -> int:
    """Write the description and print it, with cuDNN's version."""
    folder, out, *rest = sys.argv[1:]
    given = Path(rest[1]).read_text() if rest[:1] == ["--from"] else None
    cudnn = Cudnn(Path(folder))
    properties = json.loads(cudnn.describe(given))
    Path(out).write_text(json.dumps(properties, indent=2) + "\n")
    print(json.dumps({"cudnn": cudnn.library.cudnnGetVersion(), "properties": properties}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
