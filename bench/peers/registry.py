"""The peers by their names."""

from __future__ import annotations

from typing import Final

from bench.peers.api import Peer
from bench.peers.jetstream import JetStream
from bench.peers.mosquitto import Mosquitto
from bench.peers.nats import Nats
from bench.peers.redis import Redis

_ALL: Final[tuple[Peer, ...]] = (Nats(), JetStream(), Redis(), Mosquitto())
PEERS: Final[dict[str, Peer]] = {peer.name: peer for peer in _ALL}
