"""mTLS links between nodes, with reconnect."""

from cluster.core.linkwire import Peer
from cluster.links.incoming import Handler
from cluster.links.links import LinkMetrics, Links, Own
from cluster.links.secure import Security

__all__ = ["Handler", "LinkMetrics", "Links", "Own", "Peer", "Security"]
