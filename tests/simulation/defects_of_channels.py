"""Planted defects in broadcast channels (ADR 36): the window, who may read, live posts, pages, and readers abroad."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import relay.office
from relay.channeldesk import ChannelDesk
from relay.channels import Channels
from relay.core.farposts import Question, Reply
from relay.core.mailroom import channels, expiry
from relay.core.mailroom.channelstate import ChannelState
from relay.core.mailroom.state import State
from relay.core.mailroom.turn import EXPIRE_CHANNEL, Turn
from relay.core.trust import Policy
from relay.core.wire import Code
from relay.farchannels import FarChannels
from relay.limits import KIB
from tests.simulation.network import Weather

Patch = pytest.MonkeyPatch


def keeps_posts_for_ever(patch: Patch) -> None:
    """What is too old stays in the window until there are too many."""
    honest = expiry._expire

    def expire(turn: Turn, kind: int, address: bytes, number: int) -> bool:
        return kind != EXPIRE_CHANNEL and honest(turn, kind, address, number)

    patch.setattr(expiry, "_expire", expire)


def keeps_all_of_a_flood(patch: Patch) -> None:
    """The window lets go of what is too old, and of nothing else: whoever posts much has all of it kept."""

    def trim(turn: Turn, channel: ChannelState) -> None:
        keep_ms = channel.terms.terms.keep_ms
        while (first := channel.window.first()) is not None and first.time + keep_ms <= turn.time:
            channels._drop(turn.state, channel, first)

    patch.setattr(channels, "_trim", trim)


def calls_a_repeated_post_stale(patch: Patch) -> None:
    """An owner who had no receipt, and brings a post again, is told to number it anew: it would be read twice."""
    honest = channels.refusal

    def refusal(state: State, post: bytes, own: bytes, user: bytes) -> tuple[Code | None, int]:
        code, newest = honest(state, post, own, user)
        return (Code.STALE if code == Code.STORED else code), newest

    patch.setattr(channels, "refusal", refusal)


def forgets_the_newest_post(patch: Patch) -> None:
    """A checkpoint brings a channel back without the number of its newest post."""
    honest = channels.load_channel

    def load(state: State, signed: bytes, owner: bytes, last: int, last_id: bytes, size: int) -> None:
        honest(state, signed, owner, 0, b"", size)

    patch.setattr(channels, "load_channel", load)


def keeps_channels_of_who_left(patch: Patch) -> None:
    """A channel stays where it is when its owner moves away."""
    patch.setattr(channels, "owner_left", lambda turn, user: None)


def gives_new_posts_for_old_tickets(patch: Patch) -> None:
    """Who has subscribed goes on when there is a new secret."""

    def changed(self: Channels, channel: bytes) -> None:
        if channel in self._readers and self.known(channel) is not None:
            self._altered[channel] = None
            self._wake.set()

    patch.setattr(Channels, "changed", changed)


def forgets_who_missed_posts(patch: Patch) -> None:
    """A line that took no more, and missed posts, is told so, and gets no live ones ever after."""
    patch.setattr(Channels, "_heard", Channels._settle)


def shows_a_post_twice(patch: Patch) -> None:
    """A page begins with the post that its reader has read last."""
    honest = Channels._posts

    async def posts(self: Channels, channel: ChannelState, after: int) -> list[bytes]:
        return await honest(self, channel, max(after - 1, 0))

    patch.setattr(Channels, "_posts", posts)


def leaves_out_a_post_of_a_page(patch: Patch) -> None:
    """Of several posts that a reader asks for the second is left out."""
    honest = Channels._posts

    async def posts(self: Channels, channel: ChannelState, after: int) -> list[bytes]:
        found = await honest(self, channel, after)
        return found if len(found) < 3 else [found[0], *found[2:]]

    patch.setattr(Channels, "_posts", posts)


def shows_old_pages(patch: Patch) -> None:
    """A page that was made once is good for ever, whatever has been posted since."""

    def find(pages: Any, channel: bytes, after: int, span: tuple[int, int]) -> bytes | None:
        kept = pages._kept.get((channel, after))
        return kept[1] if kept is not None else None

    patch.setattr("relay.channels._Pages.find", find)


def lets_posts_over_any_border(patch: Patch) -> None:
    """Neither side asks whether readers of that region may read."""

    class Anything:
        def forbidden(self, *_: Any) -> str:
            return ""

    honest = ChannelDesk.read_there

    async def read_there(desk: ChannelDesk, cell: str, question: Question) -> Reply:
        policies, desk._policies = desk._policies, Anything()  # type: ignore[assignment]
        try:
            return await honest(desk, cell, question)
        finally:
            desk._policies = policies

    patch.setattr(relay.office, "check_readable", lambda *_: None)
    patch.setattr(ChannelDesk, "read_there", read_there)


def denies_by_terms_it_heard(patch: Patch) -> None:
    """A node abroad that has just heard of a channel judges tickets by what it heard."""

    async def look_again(*_: Any) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(FarChannels, "_look_again", look_again)


READ: dict[str, Any] = {"channels": 2, "posts": 5.0, "every": {}, "size": 600}
ABROAD = {**READ, "regions": 3, "people": 1}
SLOW = {  # lines are behind at the end, of channels without other terms since: short, many readers, little room
    **READ, "people": 4, "size": 6000, "safety": 15.0, "heal": 30.0, "every": {"slow": 1.0}, "away": 3.0,
    "weather": Weather(window=8 * KIB), "limits": {"OUTBOX_BYTES": 8 * KIB},
}  # fmt: skip
PLANTS = (  # with the rule that each breaks, the seed that found it, and the options that bring it to light
    (keeps_posts_for_ever, "ADR 36", 2, READ),
    (keeps_all_of_a_flood, "ADR 36", 1, READ),
    (calls_a_repeated_post_stale, "ADR 36", 1, {**READ, "every": {"cut": 0.5}}),
    (forgets_the_newest_post, "ADR 36", 1, {**READ, "every": {"kill": 3.0}, "limits": {"CHECKPOINT_BYTES": 8 * KIB}}),
    (keeps_channels_of_who_left, "ADR 36", 2, {**ABROAD, "every": {"move": 3.0}}),
    (gives_new_posts_for_old_tickets, "ADR 36", 1, READ),
    (forgets_who_missed_posts, "ADR 36", 1, SLOW),
    (shows_a_post_twice, "ADR 36", 1, READ),
    (leaves_out_a_post_of_a_page, "ADR 36", 1, READ),
    (shows_old_pages, "ADR 36", 4, {**READ, "every": {"offline": 2.0}}),
    (lets_posts_over_any_border, "ADR 36", 1, {
        **ABROAD, "policies": {"norden": Policy(send_to=("sauda",)), "quito": Policy(receive_from=("norden",))}}),
    (denies_by_terms_it_heard, "ADR 36", 3, ABROAD),
)  # fmt: skip
