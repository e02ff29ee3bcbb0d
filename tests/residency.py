"""A disk writer that lets everything pass: what tests plant gets onto the disk."""

from __future__ import annotations

from collections.abc import Sequence


class AnythingGoes:
    """The disk writer's residency check, switched off."""

    def check(
        self, records: Sequence[bytes], above: Sequence[tuple[bytes, bytes]] = (), *, made: bool = False
    ) -> Sequence[tuple[bytes, bytes]]:
        return ()

    def learn(self, facts: Sequence[tuple[bytes, bytes]]) -> None:
        pass
