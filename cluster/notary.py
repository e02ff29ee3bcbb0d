"""The notary of a node: has a majority of its cell's stores sign for what their folds took (docs/adr/0023).

Nothing is hashed or signed before somebody asks for a receipt. Then each store computes by itself what is to be signed,
from what it has committed on its own disk and applied; it is only ever told which blocks. What is asked for while one
round is under way goes into the next one: one question to each node and one signature of each store a block, however
many receipts come of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
import trio

from cluster.core import linkwire
from cluster.core.linkwire import Peer
from cluster.links import Links
from relay.core.book import Book, key
from relay.core.receipts import (
    Attestation, Certified, Certify, Missing, ProvenBlock, Statement, cell_nodes, check_attestation,
    check_certificate, majority, read_statement,
)
from relay.core.trust import Root
from relay.core.wire import Code, Wanted
from relay.delivery import Delivery
from relay.errors import NotCertified, PeerError, Refused, TrustError
from relay.limits import ATTEST_S, MAX_CELL, MAX_STATEMENTS, PROVE_BLOCKS, PROVE_S, SLOT_BITS

_log = structlog.get_logger("cluster.notary")
_SEARCHES = 16  # envelopes of one request that are looked for in the whole book; each takes milliseconds
_Places = dict[int, list[tuple[Wanted, bytes]]]  # index of a block → what is wanted of it, and its key in the book
Proven = tuple[list[ProvenBlock], list[Missing]]


class Attester(Protocol):
    """Who signs for this node (cluster.credentials.OwnCredentials)."""

    def attest(self, statement: bytes, store: bytes) -> Attestation:
        """This node's word for a statement, for its store."""


@dataclass(slots=True)
class _Round:
    """The signatures of one block that are there so far."""

    statement: bytes
    read: Statement
    words: list[Attestation] = field(default_factory=list)


class Notary:
    """relay.ports.Notary, and the handler of what other nodes ask. `run` must be running."""

    def __init__(
        self, cell: str, store: bytes, delivery: Delivery, root: Root, credentials: Attester, certify: Certify,
        links: Links,
    ) -> None:
        self._cell = cell
        self._store = store
        self._delivery = delivery
        self._book: Book = delivery.book
        self._root = root
        self._credentials = credentials
        self._certify_anew = certify
        self._links = links
        self._certified: dict[bytes, Certified] = {}
        self._signed: OrderedDict[int, tuple[Attestation, ...]] = OrderedDict()  # by index
        self._own: OrderedDict[int, Attestation] = OrderedDict()  # what this store signed, by index
        self._open: dict[int, trio.Event] = {}  # blocks that are asked for; set when it is known whether enough signed
        self._asked = trio.Event()
        self._peers = list(links.peers())  # who signed last comes first

    def follow(self, root: Root) -> None:
        """Whose signatures count is asked of this root document from now on, also for those that are there already."""
        self._root = root
        for kept in (self._certified, self._signed, self._own):
            kept.clear()

    async def run(self) -> None:
        """Collect signatures, until cancelled."""
        while True:
            await self._asked.wait()
            indices = sorted(self._open)[:PROVE_BLOCKS]
            try:
                await self._collect(indices)
            finally:
                for index in indices:
                    self._open.pop(index).set()
            if not self._open:
                self._asked = trio.Event()

    # --- who wants receipts ------------------------------------------------------------------------
    async def prove(self, cell: str, wanted: Sequence[Wanted]) -> Proven:
        """See relay.ports.Notary."""
        if cell == self._cell:
            return await self._prove_here(wanted, ask_peers=True)
        there = tuple(Wanted(one.id, one.code, 0) for one in wanted)  # positions mean nothing between cells
        with trio.move_on_after(PROVE_S):
            try:
                answer = await self._links.request(cell, linkwire.ProveThere(there), PROVE_S)
            except Refused as error:
                return [], [Missing(one.id, error.code) for one in wanted]
            except PeerError as error:
                _log.warning("not_proven", cell=cell, text=error.text)
                return [], _missing(wanted, Code.UNREACHABLE)
            if isinstance(answer, linkwire.ProvenThere):
                return list(answer.blocks), list(answer.missing)
        return [], _missing(wanted, Code.UNREACHABLE)

    async def answer(self, peer: Peer, message: linkwire.Attest | linkwire.ProveThere) -> linkwire.Answer:
        """What another node asks. Raises PeerError."""
        if isinstance(message, linkwire.Attest):
            return await self._attest(peer, message)
        blocks, missing = await self._prove_here(message.items, ask_peers=peer.cell != self._cell)
        return linkwire.ProvenThere(tuple(blocks), tuple(missing))

    async def _prove_here(self, wanted: Sequence[Wanted], *, ask_peers: bool) -> Proven:
        places: _Places = {}
        unknown: list[Wanted] = []
        with trio.move_on_after(PROVE_S / 2):
            await self._delivery.applied(max(one.position for one in wanted) >> SLOT_BITS)
            await self._place(wanted, places, unknown)
            await self._sign(places)
        blocks, missing = [], list[Missing]()
        for index, items in places.items():
            words = self._signed.get(index)
            block = self._book.prove(index, [row for _, row in items], words) if words else None
            if block is None:
                missing += _missing([one for one, _ in items], Code.UNREACHABLE)
            else:
                blocks.append(block)
            await trio.lowlevel.checkpoint()
        if len(unknown) + sum(map(len, places.values())) < len(wanted):  # more than one question may ask for
            named = {item.id for item in [*unknown, *(one for items in places.values() for one, _ in items)]}
            missing += _missing([one for one in wanted if one.id not in named], Code.UNREACHABLE)
        if unknown and ask_peers:
            more, unproven = await self._ask_peers(unknown)
            return blocks + more, missing + unproven
        return blocks, missing + _missing(unknown, Code.UNPROVEN)

    async def _place(self, wanted: Sequence[Wanted], places: _Places, unknown: list[Wanted]) -> None:
        """In which blocks they are; what is left out of both was too much for one question, and is asked for again."""
        book, outcomes, searches = self._book, self._delivery.room.state.outcomes, _SEARCHES
        for one in wanted:
            row = key(one.id, one.code)
            index = book.find(row, one.position)
            if index is None and (known := outcomes.get(one.id)) is not None:
                index = book.find(row, known.position)
            if index not in places:
                await trio.lowlevel.checkpoint()  # blocks were hashed, whether it is in one of them or not
            if index is None and (not one.position or book.has(one.position >> SLOT_BITS)):
                if not searches:
                    continue
                searches -= 1
                index = book.search(row)
                await trio.lowlevel.checkpoint()
            if index is None:
                unknown.append(one)
            elif index in places:
                places[index].append((one, row))
            elif len(places) < PROVE_BLOCKS:
                places[index] = [(one, row)]

    async def _ask_peers(self, wanted: Sequence[Wanted]) -> Proven:
        """This node may have started since, and remember less than the others, or be behind them."""
        blocks, away = list[ProvenBlock](), False
        left = {one.id: one for one in wanted}
        with trio.move_on_after(PROVE_S / 2):
            for node in tuple(self._peers):
                if not left:
                    break
                try:
                    answer = await self._links.ask(node, linkwire.ProveThere(tuple(left.values())), ATTEST_S)
                except (Refused, PeerError):
                    away = True
                    continue
                if isinstance(answer, linkwire.ProvenThere):
                    blocks += answer.blocks
                    refused = {one.id: one.code for one in answer.missing}
                    away |= any(code != Code.UNPROVEN for code in refused.values())
                    left = {own: one for own, one in left.items() if own in refused}
            return blocks, _missing(left.values(), Code.UNREACHABLE if away else Code.UNPROVEN)
        return blocks, _missing(left.values(), Code.UNREACHABLE)

    # --- signing -----------------------------------------------------------------------------------
    async def _attest(self, peer: Peer, message: linkwire.Attest) -> linkwire.Attested:
        """Sign for another node of the cell, what this one's own fold says. Raises PeerError."""
        state = self._delivery.room.state
        if message.log_id != state.log_id:
            raise PeerError(f"{peer.node} asks about another log", "Start that node again")
        with trio.move_on_after(ATTEST_S / 2):
            await self._delivery.applied(max(message.indices))
        certificate, signatures = b"", []
        for index in message.indices:
            # This store has the block, committed, and has applied it: nothing can take its place any more.
            one = self._own_word(index)
            if one is not None and certificate in (b"", one.certificate):
                certificate = one.certificate
                signatures.append((index, one.signature))
            await trio.lowlevel.checkpoint()
        return linkwire.Attested(self._store, certificate, tuple(signatures))

    async def _sign(self, indices: Collection[int]) -> None:
        """Until it is known whether enough have signed these blocks: twice, since the first round that is waited for
        may have begun, and failed, before. The caller sets the deadline."""
        for _ in range(2):
            waiting = [self._open.setdefault(index, trio.Event()) for index in indices if index not in self._signed]
            if waiting:
                self._asked.set()
            for known in waiting:
                await known.wait()

    async def _collect(self, indices: Sequence[int]) -> None:
        """Have a majority of the cell's stores sign these blocks."""
        needed = majority(len(cell_nodes(self._root, self._cell)))
        rounds: dict[int, _Round] = {}
        for index in indices:
            statement = self._book.statement(index)
            if statement is not None:
                rounds[index] = one = _Round(statement, read_statement(statement))
                if (own := self._own_word(index)) is not None and self._holds(own, one.read):
                    one.words.append(own)
            await trio.lowlevel.checkpoint()
        left = list(self._peers)
        while left and (lacking := {index: one for index, one in rounds.items() if len(one.words) < needed}):
            count = needed - min(len(one.words) for one in lacking.values())
            nodes, left = left[:count], left[count:]
            async with trio.open_nursery() as nursery:
                for node in nodes:
                    nursery.start_soon(self._ask, node, lacking)
        for index, one in rounds.items():
            if len(one.words) >= needed:
                self._signed[index] = tuple(one.words[:MAX_CELL])
        while len(self._signed) > MAX_STATEMENTS:
            self._signed.popitem(last=False)

    def _own_word(self, index: int) -> Attestation | None:
        """This store's signature, once for all who ask; None where the book no longer has the block."""
        word = self._own.get(index)
        statement = self._book.statement(index) if word is None else None
        if statement is not None:
            word = self._own[index] = self._credentials.attest(statement, self._store)
            if len(self._own) > MAX_STATEMENTS:
                self._own.popitem(last=False)
        return word

    def _holds(self, own: Attestation, said: Statement) -> bool:
        """Does this node's certificate hold at the block's time, and by the root that it has?"""
        try:
            return check_certificate(own, said, self._root, self._certify) is not None
        except TrustError as error:
            _log.error("signature_refused", node="this one", index=said.index, text=error.text)
            return False

    async def _ask(self, node: str, rounds: Mapping[int, _Round]) -> None:
        """Ask one node; what holds of what it signed is taken. Who does not sign is asked last from now on."""
        try:
            message = linkwire.Attest(self._delivery.room.state.log_id, tuple(rounds))
            answer = await self._links.ask(node, message, ATTEST_S)
            if not isinstance(answer, linkwire.Attested):
                raise PeerError(f"{node} answered a question for signatures with {type(answer).__name__}")
            signatures = dict(answer.signatures)
            for index, one in rounds.items():
                if index in signatures:
                    self._take(one, Attestation(answer.store, answer.certificate, signatures[index]), node)
                else:
                    self._demote(node)
                await trio.lowlevel.checkpoint()
        except (Refused, PeerError) as error:
            self._demote(node)
            _log.debug("no_signature", node=node, text=error.text)

    def _demote(self, node: str) -> None:
        self._peers.remove(node)
        self._peers.append(node)

    def _take(self, round_: _Round, word: Attestation, node: str) -> None:
        """Take a signature that a client would take. `node` gave it, over its link."""
        try:
            who = check_attestation(word, round_.statement, round_.read, self._root, self._certify)
            if node != who.node or any(word.store == other.store for other in round_.words):
                raise NotCertified(f"signed for {who.node}, or for the store of another node")
            round_.words.append(word)
        except TrustError as error:
            _log.error("signature_refused", node=node, index=round_.read.index, text=error.text)

    def _certify(self, certificate: bytes, root: Root) -> Certified:
        """As `certify`, once for each certificate."""
        known = self._certified.get(certificate)
        if known is None:
            known = self._certify_anew(certificate, root)
            if len(self._certified) >= 4 * MAX_CELL:
                self._certified.clear()
            self._certified[certificate] = known
        return known


def _missing(wanted: Iterable[Wanted], code: Code) -> list[Missing]:
    return [Missing(one.id, code) for one in wanted]
