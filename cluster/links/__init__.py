"""mTLS links between cells, with reconnect."""

from cluster.links.incoming import Handler
from cluster.links.links import LinkMetrics, Links, Own

__all__ = ["Handler", "LinkMetrics", "Links", "Own"]
