# SPDX-License-Identifier: Apache-2.0
"""Without any real image the tests say so to ctest, which would call them passed."""

import pytest

NO_TESTS = 5  # pytest's own status for "nothing ran", and ctest's SKIP_RETURN_CODE


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    ran = any(reporter.stats.get(kind) for kind in ("passed", "failed", "error"))
    if exitstatus == 0 and not ran:
        session.exitstatus = NO_TESTS
