"""The error tree: whose fault it is, and what to do about it.

    PosthouseError
    ├── ClientError            the peer on a client connection did something wrong
    │   ├── ProtocolError      bytes that break the protocol; the connection ends
    │   ├── AuthError          the proof of a device key did not hold
    │   │   └── DeviceRevoked  a newer home record does not list it any more
    │   └── Refused            one request was refused; the connection goes on
    │       ├── MovedAway      the device's user is at home elsewhere: carries the records that say so
    │       └── RegionHalted   that region's log forked: nothing goes there, or comes from there
    ├── TrustError             a signature, chain, version or expiry did not hold; never retried
    │   ├── BadSignature
    │   │   └── ForeignDevice  a device in a home record, whose key has not signed for that
    │   ├── BrokenChain
    │   │   ├── ReturnedDevice a revoked device id in a later version
    │   │   └── Backdated      a home record that begins before the one that it follows
    │   ├── Overreach          the key that signed may not change that
    │   ├── NotReleased        a move that the region which is left has not agreed to
    │   ├── NeverAtHome        a cell sends on mail for somebody who never was at home there
    │   ├── Rollback
    │   ├── MixAndMatch
    │   ├── FastForward        a version that leaves no room for those after it
    │   ├── NotValidNow
    │   │   ├── Frozen
    │   │   └── NotYet         begins further in the future than a clock may be wrong
    │   └── ReceiptError       a receipt does not hold
    │       ├── NotAReceipt           bytes that are none, or not as they were written
    │       ├── ReceiptContradicts    its parts say different things, or it is another envelope's
    │       ├── WrongPath             the envelope is not among those that the block took
    │       ├── NotCertified          signed by who may not speak for that cell
    │       ├── TooFewStores          no majority of the cell's nodes, or one that counts twice
    │       └── OtherLog              of a log that the cell no longer has
    ├── PeerError              another node did something wrong, or proved to be somebody else
    ├── ResidencyError         bytes that must not rest here; refused by the disk writer
    │   └── NotPermitted       because a region's policy does not let them
    ├── OperatorError          a config, file, port or command that the operator can mend
    │   ├── VersionTaken       two home records of one version were asked for
    │   ├── MinorityQuorum     a region's log that half of its witnesses, or fewer, suffice for
    │   ├── ConfigError        carries every finding at once
    │   └── StoreError         a store that is locked, foreign, newer or damaged
    │       ├── StoreLocked
    │       ├── StoreForeign
    │       └── StoreDamaged
    ├── DiskFailed             an I/O or fsync error: stop acknowledging, exit (rule 7)
    ├── Overloaded             a bound was reached; try again after `retry_after_ms`
    └── RolledBack             a cursor beyond the tip of the same log: somebody restored an old log (rule 13)

Every error has a one-line text and a remedy; `str(error)` shows both, so that a user reads what, where and what to do.
"""

from __future__ import annotations


class PosthouseError(Exception):
    """The root. `text` says what and where, `remedy` what to do (may be empty)."""

    def __init__(self, text: str, remedy: str = "") -> None:
        super().__init__(text, remedy)
        self.text = text
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.text}. {self.remedy}" if self.remedy else self.text


class ClientError(PosthouseError):
    """The other side of a client connection is at fault."""


class ProtocolError(ClientError):
    """Bytes that break the protocol: the connection ends with this text."""


class AuthError(ClientError):
    """The device could not prove its key, or may not be served here."""


class DeviceRevoked(AuthError):
    """A newer home record of the user does not list the device any more."""

    def __init__(self, *, rotated: bool = False) -> None:
        if rotated:
            super().__init__("this device has new keys: its old id is not listed any more", "Connect with the new one")
        else:
            super().__init__("this device was revoked: the newest home record of its user does not list it any more")


class Refused(ClientError):
    """One request was refused with an outcome `code` (relay.core.wire.Code); the connection goes on. `cell`: where it
    may not go; `limit`: the longest lifetime, ms, that would be taken (LIFETIME)."""

    def __init__(
        self, code: int, text: str, remedy: str = "", retry_after_ms: int = 0, *, cell: str = "", limit: int = 0
    ) -> None:
        super().__init__(text, remedy)
        self.code = code
        self.retry_after_ms = retry_after_ms
        self.cell = cell
        self.limit = limit


class RegionHalted(Refused):
    """Nothing goes to that region, nor comes from it: its log is proven to have forked (cluster.halts)."""

    def __init__(self, code: int, text: str, cell: str) -> None:
        super().__init__(code, text, "It waits until that region has a new log", 60_000, cell=cell)


class MovedAway(Refused):
    """The device's user has moved: the connection ends with the signed home `records` that say where to."""

    def __init__(self, code: int, text: str, records: tuple[bytes, ...]) -> None:
        super().__init__(code, text, "Connect to a node of that cell")
        self.records = records


class TrustError(PosthouseError):
    """Something signed did not verify. Never retried with the same bytes."""


class BadSignature(TrustError):
    """A signature by the expected key is missing or wrong."""


class RetiredKey(BadSignature):
    """Signed with a key that its registrar has had replaced, and not proven to be from before that."""


class ForeignDevice(BadSignature):
    """A home record lists a device whose key's holder has not signed for it."""


class BrokenChain(TrustError):
    """A version does not follow from the one before it."""


class ReturnedDevice(BrokenChain):
    """A home record lists a device id that an older version had revoked."""


class Backdated(BrokenChain):
    """A home record begins before the one that it follows."""


class Overreach(TrustError):
    """A version changes what the key that signed it may not change."""


class NotReleased(TrustError):
    """A move that the region which is left has not agreed to."""


class NeverAtHome(TrustError):
    """A cell sends on what is for somebody who never was at home there."""


class Rollback(TrustError):
    """An older version than one that was already seen."""


class MixAndMatch(TrustError):
    """Parts that are signed, but that were never published together."""


class FastForward(TrustError):
    """A version so far ahead of the last one that whoever signed it wants no other to follow."""


class NotValidNow(TrustError):
    """Expired, or not valid yet."""


class NotYet(NotValidNow):
    """Valid later only, by more than clocks may differ."""


class Frozen(NotValidNow):
    """A root document whose timestamp has run out: somebody may be keeping newer ones away."""


class ReceiptError(TrustError):
    """A receipt does not hold."""


class NotAReceipt(ReceiptError):
    """Bytes that are no receipt, or not as a node wrote them."""


class ReceiptContradicts(ReceiptError):
    """The parts of a receipt do not say the same; or it is another envelope's."""


class WrongPath(ReceiptError):
    """The envelope, with this outcome, is not among those that the block took."""


class NotCertified(ReceiptError):
    """Signed by somebody whom the region's authority, or the root, does not let speak for the cell."""


class TooFewStores(ReceiptError):
    """No majority of the cell's nodes stands by it, or one was to count twice."""


class OtherLog(ReceiptError):
    """A receipt of another log than the one asked about."""


class PeerError(PosthouseError):
    """Another node is at fault, or is not who it should be."""


class ResidencyError(PosthouseError):
    """Bytes that must not rest in this region. `ordinal` is the record's place in the refused batch."""

    def __init__(self, text: str, remedy: str = "", ordinal: int = 0) -> None:
        super().__init__(text, remedy)
        self.ordinal = ordinal


class NotPermitted(ResidencyError):
    """Bytes that the policy of a region does not let rest here, or go where they are bound."""


class OperatorError(PosthouseError):
    """Something the operator can mend: a config, a file, a port, a command."""


class MinorityQuorum(OperatorError):
    """A region's log needs so few of its witnesses that two histories could each have enough."""


class VersionTaken(OperatorError):
    """Another version of that number was signed already: two devices of a user made it at the same time."""


class ClosedBorder(OperatorError):
    """A user cannot move where the regions' policies let no mail follow."""


class AlreadyReleased(VersionTaken):
    """The region has let the user go with that version: it signs no other one in its place."""


class ConfigError(OperatorError):
    """A config with mistakes. `findings` has one (where, what, remedy) for each, all at once."""

    def __init__(self, source: str, findings: list[tuple[str, str, str]]) -> None:
        lines = [f"  {where}: {what}. {remedy}" for where, what, remedy in findings]
        super().__init__("\n".join([f"{source}: {len(findings)} mistake(s)", *lines]))
        self.findings = findings


class StoreError(OperatorError):
    """A store that cannot be served."""


class StoreLocked(StoreError):
    """Another process holds the store."""


class StoreForeign(StoreError):
    """The store of another cell, federation, key or a newer format."""


class StoreDamaged(StoreError):
    """A checksum, hash or seal did not hold. Nothing is skipped and nothing overwritten."""


class DiskFailed(PosthouseError):
    """An I/O or fsync error. The node stops acknowledging and exits; an fsync is never retried (rule 7)."""


class Overloaded(PosthouseError):
    """A bound was reached. Nothing was taken; try again after `retry_after_ms`."""

    def __init__(self, text: str, retry_after_ms: int = 1000) -> None:
        super().__init__(text, f"Try again in {retry_after_ms} ms")
        self.retry_after_ms = retry_after_ms


class RolledBack(PosthouseError):
    """A cursor or vector lies beyond the tip of the same log id: acknowledged history is missing (rule 13)."""
