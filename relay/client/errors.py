"""What the SDK raises, beside relay.errors: each says what to do.

    ClientError
    ├── Refused ── SendRefused     one message was refused for good (`code`)
    │           └─ NotProven       a message was taken, and there is no signed receipt of it (`code`)
    ├── NotServed                  the node does not serve this device
    │   └── Revoked                its user revoked it, or rotated its keys
    └── Fenced                     the same device started a newer session elsewhere
    OperatorError
    ├── BadCard, TooLarge, NotReceiving, NotOwner, UnknownGroup, UnknownChannel
    RolledBack                     the node's log is older than what this device has seen (rule 13)
    TrustError                     somebody's signed record does not hold; never retried
"""

from __future__ import annotations

from relay.core.wire import Code
from relay.errors import AuthError, OperatorError, PosthouseError, Refused

REMEDY = {
    Code.STALE: "Set this machine's clock: the node keeps finding the message too old or too new",
    Code.EXPIRED: "Nobody collected it in time. Send it again",
    Code.LIFETIME: "Ask for a shorter lifetime",
    Code.UNKNOWN_USER: "Check the address card: nobody of that id is at home in its region",
    Code.UNKNOWN_REGION: "Check the address card: the federation has no such region",
    Code.UNKNOWN_ROSTER: "The group is not known there. Ask its owner to publish it again",
    Code.NOT_MEMBER: "Ask the group's owner to add you",
    Code.MAILBOX_FULL: "The recipient has too much waiting. Send it again later",
    Code.BAD_ENVELOPE: "Update the software: the node does not take the envelope",
    Code.BAD_RECORD: "The node does not take the signed record. Was another device enrolled meanwhile?",
    Code.NOT_PERMITTED: "The policy of your region or of the recipient's does not permit it; their operators decide",
    Code.UNKNOWN_CHANNEL: "Check the channel card: the cell that it names has no such channel (any more)",
    Code.NOT_OWNER: "Only the devices of the channel's owner post to it and change it",
    Code.NOT_SUBSCRIBER: "The owner has changed the channel's secret: ask for the new card",
    Code.CHANNELS_FULL: "Close a channel, or have your channels keep less",
    Code.UNREACHABLE: "The recipient's region does not answer now. Send it again later",
    Code.UNPROVEN: "The nodes do not remember it any more: receipts are to be asked for soon",
    Code.OUTBOX_FULL: "Too much waits for that region. Send it again later",
    Code.OVERLOADED: "The node is overloaded. Send it again later",
}


class SendRefused(Refused):
    """A message was refused for good: `code` is a relay.core.wire.Code."""


class NotProven(Refused):
    """A message was taken, but no signed receipt of it can be had: `code` is UNPROVEN, or UNREACHABLE after a while."""


class NotServed(AuthError):
    """The node does not serve this device: its key, its user's home, or the protocol's version."""


class Revoked(NotServed):
    """A newer home record of the user does not list this device (any more), or not under this key. What is in its store
    stays readable."""


class Fenced(AuthError):
    """The same device started a newer session somewhere else, and this one was ended."""


class BadCard(OperatorError):
    """Not an address card."""

    def __init__(self, text: str, remedy: str = "A card looks like posthouse:region:…, copy it whole") -> None:
        super().__init__(text, remedy)


class TooLarge(OperatorError):
    """The content is larger than what can be sent as one message."""


class NotReceiving(OperatorError):
    """This client only submits; another process receives for the device."""

    def __init__(self) -> None:
        super().__init__("this client does not receive", "Open it with receive=True while no other process receives")


class UnknownGroup(OperatorError):
    """No group of that id is known here."""


class UnknownChannel(OperatorError):
    """No broadcast channel of that id is known here."""


class NotOwner(OperatorError):
    """Only the device that created a group may change it; of a channel, too, and post to it."""


class ClientClosed(PosthouseError):
    """The client was closed while somebody waited."""


def send_refused(code: int, what: str) -> SendRefused:
    """The error for an outcome `code` of `what`."""
    known = code in Code.__members__.values()
    name = Code(code).name if known else f"code {code}"
    return SendRefused(code, f"{what} was refused: {name}", REMEDY.get(Code(code), "") if known else "")
