"""Planted defects of the forwarder: see tests.simulation.defects."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.core.flights import Flight, Flights
from cluster.core.linkwire import HandOverAnswer
from cluster.core.linkwire import HandOver, Peer
from cluster.forwarder import Forwarders
from cluster.handover import Reception
from relay.core import records
from relay.core.wire import Code
from relay.errors import Overloaded, PeerError, Refused

Patch = pytest.MonkeyPatch


def forwarder_forgets(patch: Patch) -> None:
    """A batch whose answer did not come is taken for handed over."""

    def forgetting(honest: Any) -> Any:
        async def hand_over(self: Forwarders, cell: str, outbox: Any, how: Any) -> None:
            done = outbox.done
            try:
                await honest(self, cell, outbox, how)
            except (Refused, Overloaded, PeerError):
                if done <= outbox.done < outbox.last:
                    forgot = records.Handed(cell, outbox.done + 1, (), outbox.log or bytes(16), outbox.log)
                    self._intake.offer([records.encode_record(forgot)])
                raise

        return hand_over

    for name in ("_hand_over", "_hand_over_on"):
        patch.setattr(Forwarders, name, forgetting(getattr(Forwarders, name)))


def a_later_answer_counts_for_those_before(patch: Patch) -> None:
    """Of several batches under way the newest that was answered is recorded, as if it told of all before it."""
    honest = Flights.landed

    def landed(flights: Flights) -> list[Flight]:
        flying = flights._flying
        answered = [n for n, one in enumerate(flying) if isinstance(one.came, HandOverAnswer)]
        if not answered or answered[-1] == 0:
            return honest(flights)
        for _ in range(answered[-1]):
            flights._bytes -= flying.popleft().size
        return [flying[0]]

    patch.setattr(Flights, "landed", landed)


class _Taken(Exception):
    pass


def a_guess_counts_as_taken(patch: Patch) -> None:
    """What was written behind a batch that was only offered is confirmed, also where the fold passes over it."""
    guessed = set[tuple[Reception, str, int]]()
    follow, offer, hand_over = Reception._follow, Reception._offer, Reception._hand_over

    def offers(self: Reception, peer: Peer, numbered: Any, offered: Any, refused: Any, written: Any = None) -> None:
        offer(self, peer, numbered, offered, refused, written)
        if written is not None:
            guessed.add((self, peer.cell, numbered[0].number))

    async def follows(self: Reception, peer: Peer, request: HandOver, vector: Any) -> None:
        await follow(self, peer, request, vector)
        if (self, peer.cell, request.first) in guessed:
            guessed.remove((self, peer.cell, request.first))
            raise _Taken

    async def answers(self: Reception, peer: Peer, request: HandOver) -> HandOverAnswer:
        try:
            return await hand_over(self, peer, request)
        except _Taken:
            last = request.first + len(request.items) - 1
            outcomes = tuple(records.HandedAnswer(n, Code.STORED, 1) for n in range(request.first, last + 1))
            return HandOverAnswer(self._delivery.room.state.log_id, last, outcomes)

    for name, part in (("_offer", offers), ("_follow", follows), ("_hand_over", answers)):
        patch.setattr(Reception, name, part)
