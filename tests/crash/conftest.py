"""Power cuts need a C compiler, which a machine for `make test` need not have; .ci/run gets one and insists on it."""

from __future__ import annotations

import os
import shutil
import sys

_COMPILER = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
_CAN_CUT = sys.platform == "linux" and _COMPILER
_CUTS = ["test_crash.py", "test_powercut.py", "test_powercut_model.py"]
collect_ignore = [] if _CAN_CUT or os.environ.get("CI") else _CUTS


def pytest_report_header() -> str:
    return "power cuts: tested" if not collect_ignore else "power cuts: NOT tested, they need Linux and a C compiler"
