# SPDX-License-Identifier: Apache-2.0
"""Runs a command; prints its exit code, wall time and peak memory as JSON.

A process of its own, with nothing imported: Linux counts the memory of the process that starts
another into that one's peak.
"""

import json
import os
import sys
import time

begin = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - begin
code = os.waitstatus_to_exitcode(status)
print(json.dumps({"code": code, "seconds": seconds, "bytes": usage.ru_maxrss * 1024}))
