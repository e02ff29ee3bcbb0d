"""A node that saves checkpoints often: `python -m tests.crash.often KIB node run …`, so many KiB of log between two.

Within a round's load a node saves one at most, or none: what befalls it would seldom meet one that is being written.
"""

from __future__ import annotations

import sys

from relay import limits
from relay.limits import KIB

if __name__ == "__main__":
    limits.CHECKPOINT_BYTES = int(sys.argv.pop(1)) * KIB  # type: ignore[misc]
    from cluster.cli import main  # the fold takes the bound by its value

    main()
