"""A federation on one machine: real node processes, real TLS, real disks. For `up`, the demo, tests and the bench."""

from __future__ import annotations

from cluster.local.border import Border
from cluster.local.home import Home
from cluster.local.layout import Layout, NodeLayout
from cluster.local.make import make_federation
from cluster.local.processes import LocalFederation

__all__ = ["Border", "Home", "Layout", "LocalFederation", "NodeLayout", "make_federation"]
