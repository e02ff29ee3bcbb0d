"""Who was sent what, and who got it. Pure accounting, by the definitions of DESIGN section 1.

**Lost**: accepted, and some recipient device never yielded it. **Duplicated**: yielded again by the same
iterator. **Reordered**: yielded against the counter of (sender device, conversation), where not flagged as late.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Yielded:
    """What one device's iterator gave: the content's digest, and how the sender numbered it."""

    device: bytes
    content: bytes
    sender: bytes
    conversation: bytes
    counter: int
    late: bool


@dataclass(frozen=True, slots=True)
class Account:
    """The result. `lost`, `duplicated` and `reordered` count (message, device) pairs; `strange` counts what was
    yielded and never sent (or sent to others): a wrong recipient or changed content."""

    sent: int
    expected: int
    delivered: int
    lost: int
    duplicated: int
    reordered: int
    late: int
    strange: int

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.reordered or self.strange)


@dataclass(slots=True)
class Ledger:
    """Messages are told apart by the digest of their content; every content is different."""

    _to: dict[bytes, frozenset[bytes]] = field(default_factory=dict)
    _got: dict[bytes, Counter[bytes]] = field(default_factory=dict)
    _highest: dict[tuple[bytes, bytes, bytes], int] = field(default_factory=dict)
    _open: int = 0
    _reordered: int = 0
    _late: int = 0

    def sent(self, content: bytes, devices: Iterable[bytes]) -> None:
        """A message was accepted; every one of `devices` has to yield it."""
        if content in self._to:
            raise ValueError("two messages of one content cannot be told apart")
        self._to[content] = frozenset(devices)
        self._got.setdefault(content, Counter())
        self._open += sum(device not in self._got[content] for device in self._to[content])

    def yielded(self, got: Yielded) -> None:
        """A device's iterator gave a message."""
        seen = self._got.setdefault(got.content, Counter())
        if got.device in self._to.get(got.content, ()) and got.device not in seen:
            self._open -= 1
        seen[got.device] += 1
        if seen[got.device] > 1:
            return  # its place in the order was judged the first time
        line = (got.device, got.sender, got.conversation)
        if got.late:
            self._late += 1
        elif got.counter <= self._highest.get(line, -1):
            self._reordered += 1
        self._highest[line] = max(got.counter, self._highest.get(line, -1))

    @property
    def open(self) -> int:
        """(message, device) pairs that are still awaited."""
        return self._open

    def awaited(self) -> Counter[bytes]:
        """How many messages each device still has to yield."""
        return Counter(
            device for content, devices in self._to.items() for device in devices if device not in self._got[content]
        )

    def account(self) -> Account:
        delivered = lost = duplicated = strange = 0
        for content, devices in self._to.items():
            lost += len(devices - self._got[content].keys())
            delivered += len(devices & self._got[content].keys())
        for content, seen in self._got.items():
            duplicated += sum(times - 1 for times in seen.values())
            strange += len(seen.keys() - self._to.get(content, frozenset()))
        expected = sum(map(len, self._to.values()))
        return Account(
            len(self._to), expected, delivered, lost, duplicated, self._reordered, self._late, strange
        )
