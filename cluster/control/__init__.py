"""Looking at a cell, and giving orders about its members: over the admin face of a node, and its control socket."""

from __future__ import annotations

from cluster.control.api import CellControl, CellView, NotLeading, StoreView
from cluster.control.pages import cell_pages

__all__ = ["CellControl", "CellView", "NotLeading", "StoreView", "cell_pages"]
