"""What a kill does to those who wait for receipts. Pure; times are ns from the start, and latencies count from when a
message was due.

**Failover**, `failover_ms`: from the kill to the first moment from which on, for a second, 99 % of the messages that
are due get their receipts as quickly as before: within twice the p99 of before the kill, or 50 ms where that is more.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.accounts import exact_ms
from bench.scenario import NS

_NORMAL = 2  # times the p99 from before
_FLOOR_NS = 50_000_000
_WINDOW_NS = NS
_SHARE = 0.99


@dataclass(frozen=True, slots=True)
class Acks:
    """Messages of the measured part: when each was due, and when its receipt came (None: never), in order."""

    due_ns: Sequence[int]
    acked_ns: Sequence[int | None]

    def latencies(self, begin_ns: int, end_ns: int) -> list[int]:
        """Of the answered messages that were due in [begin, end)."""
        part = slice(bisect_left(self.due_ns, begin_ns), bisect_left(self.due_ns, end_ns))
        return [
            acked - due for due, acked in zip(self.due_ns[part], self.acked_ns[part], strict=True) if acked is not None
        ]

    def before(self, kill_ns: int) -> list[int]:
        """Of the messages that were answered before the kill."""
        pairs = zip(self.due_ns, self.acked_ns, strict=True)
        return [acked - due for due, acked in pairs if acked is not None and acked < kill_ns]

    def caught(self, kill_ns: int) -> list[int]:
        """Of the messages that were due before the kill and answered after it."""
        pairs = zip(self.due_ns, self.acked_ns, strict=True)
        return [acked - due for due, acked in pairs if acked is not None and due < kill_ns <= acked]

    def normal_ns(self, kill_ns: int) -> int:
        """What is quick enough after a kill."""
        before = sorted(self.before(kill_ns))
        p99 = before[max(0, math.ceil(len(before) * _SHARE) - 1)] if before else 0
        return max(_NORMAL * p99, _FLOOR_NS)

    def failover_ns(self, kill_ns: int) -> int | None:
        """See above; None where that did not happen before the end."""
        normal, first = self.normal_ns(kill_ns), bisect_left(self.due_ns, kill_ns)
        if not self.due_ns:
            return None
        slow = [acked is None or acked - due > normal for due, acked in zip(self.due_ns, self.acked_ns, strict=True)]
        sums = [0]
        for one in slow:
            sums.append(sums[-1] + one)
        for place in range(first, len(self.due_ns)):
            begin = self.due_ns[place] if place > first else kill_ns
            if begin + _WINDOW_NS > self.due_ns[-1]:
                return None
            end = bisect_left(self.due_ns, begin + _WINDOW_NS)
            if end > place and sums[end] - sums[place] <= (1 - _SHARE) * (end - place):
                return begin - kill_ns
        return None

    def silence_ns(self, kill_ns: int) -> int:
        """The longest time after the kill in which no receipt came at all."""
        times = sorted(acked for acked in self.acked_ns if acked is not None and acked >= kill_ns)
        return max((later - earlier for earlier, later in zip([kill_ns, *times], times, strict=False)), default=0)


def describe_kill(acks: Acks, kill_ns: int) -> dict[str, Any]:
    """`failover_ms`; and the receipts before it, of what was under way or due meanwhile, and after it."""
    end = acks.due_ns[-1] + 1 if acks.due_ns else 0
    failover = acks.failover_ns(kill_ns)
    calm = kill_ns + failover if failover is not None else end
    phases = {
        "before": acks.before(kill_ns),
        "failover": acks.caught(kill_ns) + acks.latencies(kill_ns, calm),
        "after": acks.latencies(calm, end),
    }
    return {
        "failover_ms": round(failover / 1e6, 1) if failover is not None else None,
        "silence_ms": round(acks.silence_ns(kill_ns) / 1e6, 1),
        "normal_ms": round(acks.normal_ns(kill_ns) / 1e6, 1),
        "phases": [
            {"phase": name, "messages": len(found), "ack_ms": exact_ms(found)} for name, found in phases.items()
        ],
    }
