"""What can be wrong with a region's log. All of it is a TrustError; two of its kinds are those of relay.errors.

TrustError
├── LogError
│   ├── Malformed          bytes or a text that are not of the format, or longer than allowed
│   ├── UnknownKey         nothing here is signed by a key that we were told to trust
│   ├── NotLogged          a home record of a region with a log comes without the proof that it is in there
│   ├── TooFewWitnesses    signed by the log, but fewer than k witnesses stand by it
│   ├── StaleCheckpoint    k witnesses stand by it, but last did so too long ago: newer ones may be held back
│   ├── BadProof           an inclusion, consistency or map proof that does not lead to the root
│   │   └── OldEpoch       a map proof against an epoch that is not the newest of its checkpoint
│   ├── Fork               two signed checkpoints that contradict each other: the log lies, and this is the evidence
│   ├── StaleProof         a consistency proof that starts elsewhere than the witness stands
│   ├── NotInTree          an index or size beyond the tree that was asked about
│   ├── BadTile            a stored tile is missing or of a wrong length
│   └── UnsoundTrust       a choice of keys and k that cannot mean what it says
├── BadSignature           (relay.errors) a signature by a trusted key that does not hold
└── Rollback               (relay.errors) a smaller tree than one that was already seen
"""

from __future__ import annotations

from relay.errors import TrustError


class LogError(TrustError):
    """Something about a region's log did not hold."""


class Malformed(LogError):
    """Not of the format. Never sent by an honest peer of the same version."""


class UnknownKey(LogError):
    """No signature by a trusted key; or one by a trusted key under the name of another log."""


class NotLogged(LogError):
    """The region has a log, by the signed root; the record comes without the proof that it is in there."""


class TooFewWitnesses(LogError):
    """The log's own signature holds; the cosignatures that hold are fewer than k."""


class BadProof(LogError):
    """A proof that does not connect what it was given with the root."""


class StaleCheckpoint(LogError):
    """What k witnesses said is older than the asker allows."""


class OldEpoch(BadProof):
    """The epoch is logged, and newer ones are logged after it: the map may have changed since."""


class Fork(LogError):
    """One log signed two trees of which neither contains the other. `first` and `second` are the signed notes: who has
    them can prove it; with them, where the sizes differ, `proof`, a consistency proof that leads to the second root but
    from another first one."""

    def __init__(self, text: str, remedy: str, first: bytes, second: bytes, proof: tuple[bytes, ...] = ()) -> None:
        super().__init__(text, remedy)
        self.first = first
        self.second = second
        self.proof = proof


class StaleProof(LogError):
    """The proof does not start at the size that the witness saw last, which is `size`."""

    def __init__(self, text: str, remedy: str, size: int) -> None:
        super().__init__(text, remedy)
        self.size = size


class NotInTree(LogError):
    """An index or a size that the tree does not have."""


class BadTile(LogError):
    """A tile that should be stored is not, or has another length than it must have."""


class UnsoundTrust(LogError):
    """Keys and a threshold that make no rule: k out of reach, one key under two names, a log as its own witness."""
