"""What the bench needs beyond Posthouse itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from relay.errors import OperatorError


@contextmanager
def needing_extra() -> Iterator[None]:
    """Imports of modules that use the packages of the extra `bench`. Raises OperatorError where one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        remedy = f"Run `make bench` in a checkout, or: {sys.executable} -m pip install 'posthouse[bench]'"
        raise OperatorError(f"the bench needs the package {error.name}", remedy) from None
