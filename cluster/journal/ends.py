"""With what the life of a node's store ends, beside DiskFailed."""

from __future__ import annotations

from relay.errors import OperatorError, PosthouseError


class Rejoin(PosthouseError):
    """This store is not what it was: the node starts anew in the same process, from what the disk holds now."""


class StoreSetAside(Rejoin):
    """The node's store was damaged, or had forgotten something, and is in quarantine now (rules 4 and 6)."""


def removed(node: str) -> OperatorError:
    """What a node says that its cell has removed."""
    return OperatorError(
        f"node {node} was removed from its cell",
        "To add it again run `posthouse journal repair` on its data directory, then start it",
    )
