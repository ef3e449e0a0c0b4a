# SPDX-License-Identifier: Apache-2.0
"""Python in a process of its own: what is loaded or looked up once, and what is missing, differ."""

import json
import os
import subprocess
import sys


def in_own_process(code, env=None, without=()):
    """What `code` assigns to `result`, as JSON; dosemap is imported, packages `without` missing."""
    missing = "".join(f"sys.modules[{name!r}] = None\n" for name in without)
    script = f"import json, sys\n{missing}import dosemap\n{code}\nprint(json.dumps(result))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
