"""The client protocol of one connection, as a pure machine: messages in, effects out.

             HELLO             AUTH               Begun
    ┌───────┐ Send(Challenge) ┌──────┐ Admit ┌──────────┐ Send(Welcome) ┌──────┐ SUBMIT ACK LOOKUP ROSTER EPHEMERAL
    │ HELLO │ ───────────────▶│ AUTH │ ─────▶│ STARTING │ ─────────────▶│ LIVE │ ──┐ Ask; ASKROOT: Send(RootPart)
    └───────┘                 └──────┘       └──────────┘               └──────┘ ◀─┘
         anything else, anywhere: Close, and the session is CLOSED

The gateway's connection carries the effects out. The table below holds every transition there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

from relay.core import wire
from relay.core.proven import all_told
from relay.core.rootparts import part_of
from relay.core.trust import Root
from relay.core.wire import Fault
from relay.errors import (
    AuthError, DeviceRevoked, MovedAway, Overloaded, PosthouseError, ProtocolError, Refused, RolledBack, TrustError,
)  # fmt: skip
from relay.limits import ACK_EVERY, ACK_MS, MAX_BATCH, MAX_ENVELOPE, MAX_LIFETIME, MAX_ROOT_PARTS, MAX_WANTED

_LOG_ID = 16  # bytes


class State(Enum):
    """Where a session is."""

    HELLO = auto()  # waits for HELLO
    AUTH = auto()  # CHALLENGE went out
    STARTING = auto()  # the key is proven; the office admits and starts
    LIVE = auto()  # WELCOME went out
    CLOSED = auto()


# --- local events: what the office answered ------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Begun:
    """The office has admitted the device and started the session."""

    log_id: bytes
    cursor: int
    home_version: int
    time_ms: int
    max_lifetime: int = MAX_LIFETIME
    ack_ms: int = ACK_MS


# --- effects -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Send:
    """Send this to the client."""

    message: wire.ServerMessage


@dataclass(frozen=True, slots=True)
class Admit:
    """The device proved its key: have the office admit and start it, then say `begun`."""

    user: bytes
    device: bytes
    records: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Hand this request to the office."""

    message: wire.Submit | wire.Ack | wire.Lookup | wire.Roster | wire.Ephemeral | wire.Prove | wire.ChannelMessage


@dataclass(frozen=True, slots=True)
class Close:
    """Send MOVED, if there are `records`, and ERROR with this, then close."""

    fault: Fault
    text: str
    retry_after_ms: int = 0
    records: tuple[bytes, ...] = ()


Effect = Send | Admit | Ask | Close


class Session:
    """One client connection's protocol. `challenge` is what HELLO will be answered with: its nonce is fresh. `root`
    says which root document the node goes by now."""

    def __init__(self, challenge: wire.Challenge, root: Callable[[], Root]) -> None:
        self._challenge = challenge
        self._root = root
        self._root_parts = 0  # that were given
        self._hello: wire.Hello | None = None
        self.state = State.HELLO

    @property
    def hello(self) -> wire.Hello:
        """What the client opened with. Raises LookupError before HELLO."""
        if self._hello is None:
            raise LookupError("no HELLO yet")
        return self._hello

    @property
    def nonce(self) -> bytes:
        """The nonce of the challenge; names this session in the log."""
        return self._challenge.nonce

    def receive(self, data: bytes) -> Effect:
        """One binary message from the client (any bytes). Raises nothing: what is wrong becomes Close."""
        try:
            return self._step(wire.decode_client(data))
        except PosthouseError as error:
            return self.failed(error)

    def begun(self, event: Begun) -> Effect:
        """The answer to Admit."""
        try:
            return self._step(event)
        except PosthouseError as error:
            return self.failed(error)

    def failed(self, error: Exception) -> Close:
        """Something went wrong, here or in the office: the session is over, whatever its state."""
        state, self.state = self.state, State.CLOSED
        return closing(error, state)

    def _step(self, event: wire.ClientMessage | Begun) -> Effect:
        found = TRANSITIONS[self.state].get(type(event))
        if found is None:
            raise ProtocolError(f"{type(event).__name__.upper()} came {_WHEN[self.state]}", _EXPECTED[self.state])
        action, after = found
        effect = action(self, event)
        self.state = after
        return effect

    # --- actions, one a transition ---------------------------------------------------------------
    def _on_hello(self, hello: wire.Hello) -> Effect:
        if hello.version != wire.VERSION:
            raise ProtocolError(
                f"The client speaks version {hello.version} and this node {wire.VERSION} of {wire.SUBPROTOCOL}",
                "Update the older of the two",
            )
        if len(hello.log_id) not in (0, _LOG_ID):
            raise ProtocolError(f"A log id of {len(hello.log_id)} bytes in HELLO", f"Send {_LOG_ID}, or none when new")
        if hello.cursor and not hello.log_id:
            raise ProtocolError("A cursor without a log id in HELLO", "Send both, or neither when new")
        self._hello = hello
        return Send(self._challenge)

    def _on_auth(self, auth: wire.Auth) -> Effect:
        signed = wire.challenge_bytes(self._challenge, auth.user, auth.device)
        try:
            VerifyKey(auth.device).verify(signed, auth.signature)
        except (CryptoError, ValueError):
            raise AuthError(
                "The signature in AUTH is not the device key's over this challenge",
                "Sign challenge_bytes (docs/PROTOCOL.md) of the CHALLENGE of this very connection",
            ) from None
        return Admit(auth.user, auth.device, auth.records)

    def _on_begun(self, begun: Begun) -> Effect:
        return Send(
            wire.Welcome(
                log_id=begun.log_id, cursor=begun.cursor, time=begun.time_ms, home_version=begun.home_version,
                ack_every=ACK_EVERY, ack_ms=begun.ack_ms, max_envelope=MAX_ENVELOPE, max_batch=MAX_BATCH,
                max_lifetime=begun.max_lifetime,
            )
        )  # fmt: skip

    def _on_ack(self, ack: wire.Ack) -> Effect:
        if not self.hello.receive:
            raise ProtocolError("ACK on a connection that only submits", "Set `receive` in HELLO to be delivered to")
        return Ask(ack)

    def _on_prove(self, prove: wire.Prove) -> Effect:
        if len(all_told(prove.items)) > MAX_WANTED:
            raise ProtocolError(f"PROVE for more than {MAX_WANTED} envelopes", "Ask in several questions")
        return Ask(prove)

    def _on_ask_root(self, ask: wire.AskRoot) -> Effect:
        part = part_of(self._root(), ask)
        self._root_parts += bool(part.size)
        if self._root_parts > MAX_ROOT_PARTS:
            what = f"ASKROOT for more than {MAX_ROOT_PARTS} parts on one connection"
            raise ProtocolError(what, "Keep the document, and ask for newer ones only")
        return Send(part)

    def _on_request(
        self, message: wire.Submit | wire.Lookup | wire.Roster | wire.Ephemeral | wire.ChannelMessage
    ) -> Effect:
        return Ask(message)


_Action = Callable[[Session, Any], Effect]

TRANSITIONS: Final[dict[State, dict[type, tuple[_Action, State]]]] = {
    State.HELLO: {wire.Hello: (Session._on_hello, State.AUTH)},
    State.AUTH: {wire.Auth: (Session._on_auth, State.STARTING)},
    State.STARTING: {Begun: (Session._on_begun, State.LIVE)},
    State.LIVE: {
        wire.Submit: (Session._on_request, State.LIVE),
        wire.Ack: (Session._on_ack, State.LIVE),
        wire.Lookup: (Session._on_request, State.LIVE),
        wire.Roster: (Session._on_request, State.LIVE),
        wire.Ephemeral: (Session._on_request, State.LIVE),
        wire.Prove: (Session._on_prove, State.LIVE),
        wire.Subscribe: (Session._on_request, State.LIVE),
        wire.SubscribeFar: (Session._on_request, State.LIVE),
        wire.Unsubscribe: (Session._on_request, State.LIVE),
        wire.Read: (Session._on_request, State.LIVE),
        wire.Terms: (Session._on_request, State.LIVE),
        wire.Posts: (Session._on_request, State.LIVE),
        wire.AskRoot: (Session._on_ask_root, State.LIVE),
    },
    State.CLOSED: {},
}

_WHEN: Final = {
    State.HELLO: "before HELLO",
    State.AUTH: "before AUTH",
    State.STARTING: "before WELCOME",
    State.LIVE: "a second time",
    State.CLOSED: "after ERROR",
}
_EXPECTED: Final = {
    State.HELLO: "Open with HELLO",
    State.AUTH: "Answer CHALLENGE with AUTH",
    State.STARTING: "Wait for WELCOME",
    State.LIVE: "Send SUBMIT, ACK, LOOKUP, ROSTER, EPHEMERAL, PROVE, ASKROOT, or what is for channels",
    State.CLOSED: "Reconnect",
}


def closing(error: Exception, state: State) -> Close:
    """What ends a session in `state` after `error`. Whose fault it is decides what the client is told; our own trouble
    is only named as such."""
    match error:
        case ProtocolError():
            return Close(Fault.PROTOCOL, str(error))
        case DeviceRevoked():
            return Close(Fault.REVOKED, str(error))
        case AuthError() | TrustError():
            return Close(Fault.AUTH, str(error))
        case MovedAway():
            return Close(Fault.NOT_HOME, str(error), records=error.records)
        case Refused() if error.code >= wire.Code.UNREACHABLE or state is State.LIVE:
            return Close(Fault.OVERLOADED, str(error), error.retry_after_ms)
        case Refused():
            return Close(Fault.NOT_HOME, str(error))
        case Overloaded():
            return Close(Fault.OVERLOADED, str(error), error.retry_after_ms)
        case RolledBack():
            return Close(Fault.ROLLED_BACK, str(error))
        case _:
            return Close(Fault.INTERNAL, "The node had trouble of its own and could not go on. Reconnect after a while")
