"""mTLS links between cells, with reconnect."""

from cluster.core.linkwire import Peer
from cluster.links.incoming import Handler
from cluster.links.links import LinkMetrics, Links, Own

__all__ = ["Handler", "LinkMetrics", "Links", "Own", "Peer"]
