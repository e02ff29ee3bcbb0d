"""What the batch that is being judged teaches, over what is known."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping
from typing import TypeVar

_T = TypeVar("_T")


class Layer(ChainMap[bytes, _T]):
    """What a batch teaches, over what is known. Nobody is forgotten: whoever was found is not looked for again."""

    def __init__(self, below: MutableMapping[bytes, _T]) -> None:
        super().__init__({}, below)
        self._found = set[object]()

    def __contains__(self, key: object) -> bool:
        if key in self._found:
            return True
        found = key in self.maps[0] or key in self.maps[1]
        if found:
            self._found.add(key)
        return found
