"""`python -m cluster.cli`: the same as `posthouse`."""

from __future__ import annotations

from cluster.cli import main

main()
