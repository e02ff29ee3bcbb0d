"""How long a test waits for what comes at once on an idle machine."""

from __future__ import annotations

from typing import Final

PATIENCE_S: Final = 200.0  # it only ends tests that hang: a machine with much else to do may take a good part of it
