"""Erasure receipts in a simulated federation: every node is asked for them all the time, and each one that it gives is
held against its disk, as that lies there at the moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import cluster.erasure
import cluster.node
from cluster.audit.shelf import held_in
from cluster.core.linkwire import Peer
from cluster.erasure import Erasure, Erasures, verify_erasure
from relay.core.records import Submit, decode_record
from relay.core.trust import Root
from relay.journal.api import BlockRow
from tests.simulation.keys import key
from tests.simulation.ledger import Ledger
from tests.simulation.nodes import SimNode
from tests.simulation.ring import opened
from tests.simulation.world import Trace, Violation


class Asking:
    """What an operator asks for, and an auditor looks after. `names`: user → name."""

    def __init__(self, trace: Trace, ledger: Ledger, root: Root, nodes: Sequence[SimNode], names: Mapping[bytes, str]):
        self.trace, self.ledger, self.root, self.nodes, self.names = trace, ledger, root, nodes, names
        self._at_move: dict[tuple[str, bytes], tuple[int, bytes]] = {}  # node, user → its life and store at the time
        self._given: set[tuple[bytes, bytes, int]] = set()  # store, user, version

    def moves(self, user: bytes, region: str) -> None:
        """A user is about to leave this region."""
        for node in self.nodes:
            if node.region == region:
                store = node.disk.content.meta.store if node.disk.content else b""
                self._at_move[node.host.name, user] = node.lives if node.up else 0, store

    def look(self) -> None:
        """All receipts that there are. Raises Violation where one is not true."""
        for node in self.nodes:
            for receipt in self._receipts(node):
                self._check(node, receipt)
                place = (receipt.store, receipt.user, receipt.version)
                if place not in self._given:
                    self._given.add(place)
                    self._count(node, receipt)

    def missing(self) -> list[str]:
        """Who has left, and has no receipt from a node of the home that was left."""
        return [
            f"{node} of {self.names[user]}"
            for node in self.nodes if node.erasures is not None
            for given in [{receipt.user for receipt in self._receipts(node)}]
            for user in sorted(node.erasures.state().moved.keys() - given) if self._is_honest(user)
        ]  # fmt: skip

    def _is_honest(self, user: bytes) -> bool:
        """Has no liar ever been this user's home?"""
        return not self.ledger.exposed(self.names.get(user, ""))

    def _receipts(self, node: SimNode) -> Iterator[Erasure]:
        given = node.erasures.receipts() if node.erasures is not None else []
        return (verify_erasure(signed, self.root) for signed in given)

    def _count(self, node: SimNode, receipt: Erasure) -> None:
        self.trace("erasure receipt", node.host.name, self.names[receipt.user], receipt.version, receipt.below)
        life, store = self._at_move.get((node.host.name, receipt.user), (node.lives, receipt.store))
        if life != node.lives:
            self.trace.counts["erasure receipt of a node that was away"] += 1
        if store != receipt.store:
            self.trace.counts["erasure receipt of a new store"] += 1
        if node.disk.aside:
            self.trace.counts["erasure receipt beside a store that was set aside"] += 1

    def _check(self, node: SimNode, receipt: Erasure) -> None:
        """Nothing below the index is on the disk, what was deleted of it included; above it, as far as this node has
        applied, nothing is for the user."""
        image = node.disk.content
        if image is None or (image.meta.store, image.meta.log_id) != (receipt.store, receipt.log):
            raise Violation(f"{node} gives an erasure receipt of another store than it has")
        state = node.erasures.state() if node.erasures else None
        if state is None or receipt.version != state.moved[receipt.user].record.version:
            raise Violation(f"{node} gives an erasure receipt by another version than it knows")
        whom = self.names[receipt.user]
        left = [*((index, "deleted, and still there") for index in image.left), *(
            (row[1], "kept") for kind in ("block", "staged") for row in image.keys(kind))]  # fmt: skip
        for index, how in left:
            if index < receipt.below:
                raise Violation(f"{node} has erased {whom} below {receipt.below}, and block {index} is {how}")
        for kind in ("block", "staged") if self._is_honest(receipt.user) else ():
            for found in image.keys(kind):
                if found[1] <= state.index and (kind, found[1]) not in node.disk.flipped:
                    self._look_through(f"{node}, {kind} {found[1]}", image.rows[found], receipt)

    def _look_through(self, where: str, row: BlockRow, receipt: Erasure) -> None:
        """What people here write to who has left waits here as all that they write abroad does; nothing else."""
        if not any(letter.target == receipt.user for letter in self.ledger.found_in(row.sealed)):
            return
        for record in opened(row.sealed):
            for holder, envelope, _ in held_in(decode_record(record)):
                goes_abroad = isinstance(holder, Submit) and holder.dest != receipt.cell
                for letter in self.ledger.found_in(envelope):
                    if letter.target == receipt.user and not goes_abroad:
                        whom = self.names[receipt.user]
                        raise Violation(f"{where}: letter {letter.number} is for {whom}, said to be erased")


# --- certificates are only names (tests.simulation.nodes) --------------------------------------------
def _load(private_key: Path, certificate: Path) -> tuple[Ed25519PrivateKey, bytes]:
    node, _, region = certificate.parent.name.partition(".")
    name = f"{region}/1 {node}"
    return Ed25519PrivateKey.from_private_bytes(bytes(key(name))), name.encode()


def _identify(certificate: bytes, root: Root) -> Peer:
    cell, _, node = certificate.decode().partition(" ")
    return Peer(cell.partition("/")[0], cell, node)


class _Certificate:
    """That of a name."""

    def __init__(self, data: bytes, *, der: bool) -> None:
        self._name = data.decode()

    def public_key(self) -> Any:
        return Ed25519PrivateKey.from_private_bytes(bytes(key(self._name))).public_key()


@contextmanager
def giving() -> Iterator[None]:
    """Real nodes' receipts can be had, and are signed without files."""

    def made(*given: Any) -> Erasures:
        erasures = Erasures(*given)
        clock: Any = erasures.now_ms
        clock.__self__.node.erasures = erasures
        return erasures

    patched = (
        (cluster.node, "Erasures", made), (cluster.erasure, "load_key_pair", _load),
        (cluster.erasure, "identify", _identify), (cluster.erasure, "parse_certificate", _Certificate),
    )  # fmt: skip
    honest = [getattr(place, name) for place, name, _ in patched]
    for place, name, ours in patched:
        setattr(place, name, ours)
    try:
        yield
    finally:
        for (place, name, _), before in zip(patched, honest, strict=True):
            setattr(place, name, before)
