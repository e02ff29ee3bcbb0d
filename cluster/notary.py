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
from itertools import islice
from typing import Protocol

import structlog
import trio

from cluster.core import linkwire
from cluster.core.linkwire import Peer
from cluster.links import Links
from relay.core.book import Book
from relay.core.proven import Missing, ProvenBlock, Wanted, all_told, question
from relay.core.receipts import (
    Attestation, Certified, Certify, Mark, Statement, Word, cell_nodes, check_certificate, check_word, majority,
    marks_of, read_statement, said,
)
from relay.core.trust import Root
from relay.core.widetree import HASH
from relay.core.wire import Code
from relay.delivery import Delivery
from relay.errors import NotAReceipt, NotCertified, PeerError, ReceiptContradicts, Refused, TrustError
from relay.limits import (
    ATTEST_REST, ATTEST_REST_S, ATTEST_S, MAX_CELL, MAX_STATEMENTS, MAX_WANTED, PROVE_BLOCKS, PROVE_S, SIGNED_TOGETHER,
    SLOT_BITS,
)

_log = structlog.get_logger("cluster.notary")
_SEARCHES = 16  # envelopes of one request that are looked for in the whole book; each takes milliseconds
_Places = dict[int, tuple[list[bytes], list[int]]]  # index of a block → what is wanted of it, and the ordinals there
_Signed = tuple[tuple[int, ...], Word]  # the indices of blocks, and what was signed of all of them
Proven = tuple[list[ProvenBlock], list[Missing]]


class Attester(Protocol):
    """Who signs for this node (cluster.credentials.OwnCredentials)."""

    def attest(self, statements: Sequence[bytes], store: bytes) -> Word:
        """This node's word for statements, for its store."""


@dataclass(slots=True)
class _Round:
    """The signatures of one block that are there so far."""

    digest: bytes  # of the statement
    read: Statement
    words: list[Attestation] = field(default_factory=list)
    marks: set[Mark] = field(default_factory=set)  # of those who signed


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
        self._own: OrderedDict[int, _Signed] = OrderedDict()  # what this store signed, by index
        self._open: dict[int, trio.Event] = {}  # blocks that are asked for; set when it is known whether enough signed
        self._asked = trio.Event()
        self._peers = list(links.peers())  # who signed last comes first

    def follow(self, root: Root) -> None:
        """Whose signatures count is asked of this root document from now on, also for those that are there already."""
        self._root = root
        for kept in (self._certified, self._signed, self._own):
            kept.clear()

    async def run(self) -> None:
        """Collect signatures, until cancelled. Rests in between: what is asked for meanwhile goes into one question."""
        while True:
            await self._asked.wait()
            began = trio.current_time()
            indices = sorted(islice(self._open, PROVE_BLOCKS))  # each in its turn: nobody's questions push out others
            try:
                await self._collect(indices)
            finally:
                for index in indices:
                    self._open.pop(index).set()
            if not self._open:
                self._asked = trio.Event()
            await trio.sleep(min(ATTEST_REST_S, ATTEST_REST * (trio.current_time() - began)))

    # --- who wants receipts ------------------------------------------------------------------------
    async def prove(self, cell: str, wanted: Sequence[Wanted]) -> Proven:
        """See relay.ports.Notary."""
        if cell == self._cell:
            return await self._prove_here(wanted, ask_peers=True)
        told = all_told(wanted)
        there = question((0, one) for one in told)  # the index of a block means nothing between cells
        with trio.move_on_after(PROVE_S):
            try:
                answer = await self._links.request(cell, linkwire.ProveThere(there), PROVE_S)
            except Refused as error:
                return [], _missing(told, error.code)
            except PeerError as error:
                _log.warning("not_proven", cell=cell, text=error.text)
                return [], _missing(told, Code.UNREACHABLE)
            if isinstance(answer, linkwire.ProvenThere):
                return list(answer.blocks), list(answer.missing)
        return [], _missing(told, Code.UNREACHABLE)

    async def answer(self, peer: Peer, message: linkwire.Attest | linkwire.ProveThere) -> linkwire.Answer:
        """What another node asks. Raises PeerError."""
        if isinstance(message, linkwire.Attest):
            return await self._attest(peer, message)
        if len(all_told(message.items)) > MAX_WANTED:
            raise PeerError(f"{peer.node} asks for more than {MAX_WANTED} receipts at once")
        blocks, missing = await self._prove_here(message.items, ask_peers=peer.cell != self._cell)
        return linkwire.ProvenThere(tuple(blocks), tuple(missing))

    async def _prove_here(self, wanted: Sequence[Wanted], *, ask_peers: bool) -> Proven:
        places: _Places = {}
        unknown: list[tuple[int, bytes]] = []
        with trio.move_on_after(PROVE_S / 2):
            await self._delivery.applied(max(one.index for one in wanted))
            await self._place(wanted, places, unknown)
            await self._sign(places)
        blocks, missing = [], list[Missing]()
        for index, (ones, ordinals) in places.items():
            words = self._signed.get(index)
            block = self._book.prove(index, ordinals, words) if words else None
            if block is None:
                missing += _missing(ones, Code.UNREACHABLE)
            else:
                blocks.append(block)
            await trio.lowlevel.checkpoint()
        asked, lost = all_told(wanted), [one for _, one in unknown]
        placed = [lost, *(ones for ones, _ in places.values())]
        if sum(map(len, placed)) < len(asked):  # more than one question may ask for
            named = {one for ones in placed for one in ones}
            missing += _missing([one for one in asked if one not in named], Code.UNREACHABLE)
        if unknown and ask_peers:
            more, unproven = await self._ask_peers(unknown)
            return blocks + more, missing + unproven
        return blocks, missing + _missing(lost, Code.UNPROVEN)

    async def _place(self, wanted: Sequence[Wanted], places: _Places, unknown: list[tuple[int, bytes]]) -> None:
        """In which blocks they are; what is left out of both was too much for one question, and is asked for again."""
        astray: list[tuple[int, bytes]] = []
        for index, told in [(one.index, one.told) for one in wanted]:
            if len(places) == PROVE_BLOCKS:
                return
            found: Sequence[int] = self._book.find(index, told)
            if -1 in found:
                astray += [(index, one) for one, ordinal in zip(told, found, strict=True) if ordinal < 0]
                told = tuple(one for one, ordinal in zip(told, found, strict=True) if ordinal >= 0)
                found = [ordinal for ordinal in found if ordinal >= 0]
            if told:
                ones, ordinals = places.setdefault(index, ([], []))
                ones += told
                ordinals += found
            await trio.lowlevel.checkpoint()  # the block was hashed, whether it took one of them or not
        searches = _SEARCHES
        for index, one in astray:
            place = self._told_elsewhere(one)
            if place is None and (not index or self._book.has(index)):
                if not searches:
                    continue
                searches -= 1
                place = self._book.search(one)
            if place is None:
                unknown.append((index, one))
            elif place[0] in places or len(places) < PROVE_BLOCKS:
                ones, ordinals = places.setdefault(place[0], ([], []))
                ones.append(one)
                ordinals.append(place[1])
            await trio.lowlevel.checkpoint()

    def _told_elsewhere(self, one: bytes) -> tuple[int, int] | None:
        """The block that took it, and its ordinal there, where the fold remembers another position than was said."""
        known = self._delivery.room.state.outcomes.get(one[:HASH])
        if known is None:
            return None
        index = known.position >> SLOT_BITS
        [ordinal] = self._book.find(index, [one])
        return None if ordinal < 0 else (index, ordinal)

    async def _ask_peers(self, wanted: Sequence[tuple[int, bytes]]) -> Proven:
        """This node may have started since, and remember less than the others, or be behind them."""
        blocks, away = list[ProvenBlock](), False
        left = {one[:HASH]: (index, one) for index, one in wanted}
        with trio.move_on_after(PROVE_S / 2):
            for node in tuple(self._peers):
                if not left:
                    break
                try:
                    answer = await self._links.ask(node, linkwire.ProveThere(question(left.values())), ATTEST_S)
                except (Refused, PeerError):
                    away = True
                    continue
                if isinstance(answer, linkwire.ProvenThere):
                    blocks += answer.blocks
                    refused = {one.id: one.code for one in answer.missing}
                    away |= any(code != Code.UNPROVEN for code in refused.values())
                    left = {own: one for own, one in left.items() if own in refused}
            return blocks, _missing(left, Code.UNREACHABLE if away else Code.UNPROVEN)
        return blocks, _missing(left, Code.UNREACHABLE)

    # --- signing -----------------------------------------------------------------------------------
    async def _attest(self, peer: Peer, message: linkwire.Attest) -> linkwire.Attested:
        """Sign for another node of the cell, what this one's own fold says. Raises PeerError."""
        state = self._delivery.room.state
        if message.log_id != state.log_id:
            raise PeerError(f"{peer.node} asks about another log", "Start that node again")
        with trio.move_on_after(ATTEST_S / 2):
            await self._delivery.applied(max(message.indices))
        await self._sign_own(message.indices)
        return linkwire.Attested(self._signed_own(message.indices))

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
        root = self._root
        needed = majority(len(cell_nodes(root, self._cell)))
        rounds: dict[int, _Round] = {}
        for index in indices:
            statement = self._book.statement(index)
            if statement is not None:
                rounds[index] = _Round(said(statement), read_statement(statement))
            await trio.lowlevel.checkpoint()
        await self._sign_own(rounds)
        for signed in self._signed_own(rounds):
            self._take(signed, rounds, None)
        left = list(self._peers)
        while left and (lacking := {index: one for index, one in rounds.items() if len(one.words) < needed}):
            count = needed - min(len(one.words) for one in lacking.values())
            nodes, left = left[:count], left[count:]
            async with trio.open_nursery() as nursery:
                for node in nodes:
                    nursery.start_soon(self._ask, node, lacking)
        for index, one in rounds.items():
            if len(one.words) >= needed and self._root is root:  # else it is asked again: another may be enough now
                self._signed[index] = tuple(one.words[:MAX_CELL])
        while len(self._signed) > MAX_STATEMENTS:
            self._signed.popitem(last=False)

    async def _sign_own(self, indices: Iterable[int]) -> None:
        """This store's word for those of the blocks that the book still has, once for all who ask. It has them,
        committed, and has applied them: nothing can take their place any more. What is signed under a certificate that
        did not hold when a block was made is no word for that block: it is signed again when somebody asks again."""
        statements = {}
        for index in indices:
            if index not in self._own and (statement := self._book.statement(index)) is not None:
                statements[index] = statement
            await trio.lowlevel.checkpoint()
        left = list(statements)
        while left:
            together, left = tuple(left[:SIGNED_TOGETHER]), left[SIGNED_TOGETHER:]
            word = self._credentials.attest([statements[index] for index in together], self._store)
            for index in together:
                try:
                    check_certificate(word.certificate, read_statement(statements[index]), self._root, self._certify)
                    self._own[index] = together, word
                except TrustError as error:
                    _log.error("signature_refused", node="this one", index=index, text=error.text)
        while len(self._own) > MAX_STATEMENTS:
            self._own.popitem(last=False)

    def _signed_own(self, indices: Iterable[int]) -> tuple[_Signed, ...]:
        signed = [self._own[index] for index in indices if index in self._own]
        return tuple({word.signature: (together, word) for together, word in signed}.values())

    async def _ask(self, node: str, rounds: Mapping[int, _Round]) -> None:
        """Ask one node; what holds of what it signed is taken. Who does not sign is asked last from now on."""
        try:
            message = linkwire.Attest(self._delivery.room.state.log_id, tuple(rounds))
            answer = await self._links.ask(node, message, ATTEST_S)
            if not isinstance(answer, linkwire.Attested):
                raise PeerError(f"{node} answered a question for signatures with {type(answer).__name__}")
            taken = 0
            for signed in answer.words:
                taken += self._take(signed, rounds, node)
                await trio.lowlevel.checkpoint()
            if taken < len(rounds):
                self._demote(node)
        except (Refused, PeerError) as error:
            self._demote(node)
            _log.debug("no_signature", node=node, text=error.text)

    def _demote(self, node: str) -> None:
        self._peers.remove(node)
        self._peers.append(node)

    def _take(self, signed: _Signed, rounds: Mapping[int, _Round], node: str | None) -> int:
        """Take what a client would take of this, for each block by itself: of how many blocks that was. `node` gave it,
        over its link; None where this node signed it."""
        indices, word = signed
        wanted = [(place, rounds[index]) for place, index in enumerate(indices) if index in rounds]
        if not wanted:
            return 0
        try:
            if len(word.digests) != len(indices) * HASH:
                raise NotAReceipt("not one digest for each block")
            if node is not None:
                who = self._certify(word.certificate, self._root)
                if who.node != node:
                    raise NotCertified(f"signed for {who.node}")
                check_word(word, who)
        except TrustError as error:
            _log.error("signature_refused", node=node or "this one", text=error.text)
            return 0
        return sum(self._take_one(word, place, one, node) for place, one in wanted)

    def _take_one(self, word: Word, place: int, one: _Round, node: str | None) -> bool:
        """Take it for one block."""
        try:
            if word.digests[place * HASH : (place + 1) * HASH] != one.digest:
                raise ReceiptContradicts("its fold took other envelopes")
            who = check_certificate(word.certificate, one.read, self._root, self._certify)
            marks = marks_of(who, word.store)
            if one.marks & marks:
                raise NotCertified(f"{who.node}, its store or its key signed this block already")
        except TrustError as error:
            _log.error("signature_refused", node=node or "this one", index=one.read.index, text=error.text)
            return False
        one.marks |= marks
        one.words.append(word.attestation(place))
        return True

    def _certify(self, certificate: bytes, root: Root) -> Certified:
        """As `certify`, once for each certificate."""
        known = self._certified.get(certificate)
        if known is None:
            known = self._certify_anew(certificate, root)
            if len(self._certified) >= 4 * MAX_CELL:
                self._certified.clear()
            self._certified[certificate] = known
        return known


def _missing(told: Iterable[bytes], code: int) -> list[Missing]:
    return [Missing(one[:HASH], code) for one in told]
