"""The directory of whoever uses a federation: its root document, the keys kept here, and a store for each client.

    root.bin                     the signed root
    secrets/                     mode 0700: keys that this person keeps, each 0600
    registrar/<region>/          what the registrar signed, user by user (cluster.local.book)
    clients/<name>/              store.sqlite, card
    clients/<name>+<device>/     a second device of <name>

Names are only names of directories on this machine; no relay ever learns them.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from nacl.signing import SigningKey

from cluster.provision import load_signing_key
from relay.core.trust import Root, reopen_root
from relay.errors import OperatorError, ProtocolError

MAX_NAME = 64  # characters; with "+device" it still fits a file name of 255 bytes in any script


@dataclass(frozen=True)
class Home:
    """A directory in the form above."""

    directory: Path

    @property
    def root_path(self) -> Path:
        return self.directory / "root.bin"

    @property
    def secrets(self) -> Path:
        return self.directory / "secrets"

    @property
    def clients(self) -> Path:
        return self.directory / "clients"

    def root(self, now_ms: int) -> Root:
        """The verified root document. Raises OperatorError where there is none, TrustError where it does not hold."""
        return read_root(self.root_path, now_ms)

    def registrar(self, region: str) -> SigningKey:
        """The key that signs home records of `region`. Raises OperatorError where it is not kept here."""
        return load_signing_key(self.secrets / f"{region}.registrar.key")

    def book(self, region: str) -> Path:
        """Where it is kept what the registrar of `region` signed."""
        return self.directory / "registrar" / region

    def names(self) -> list[str]:
        """Every client (user or further device) that has a store here."""
        return sorted(path.parent.name for path in self.clients.glob("*/store.sqlite"))

    def store(self, name: str) -> Path:
        """The store of client `name`. Raises OperatorError where there is none."""
        if name not in (known := self.names()):
            meant = get_close_matches(name, known, 1)
            remedy = f"Did you mean {meant[0]!r}?" if meant else f"There are: {', '.join(known) or 'none yet'}"
            raise OperatorError(f"{self.directory} has no user {name!r}", remedy)
        return self.clients / name / "store.sqlite"


def read_root(path: Path, now_ms: int) -> Root:
    """The root document in a file that was verified when it was put there (its timestamp may have run out since).
    Raises OperatorError where there is none, TrustError where it does not hold."""
    try:
        return reopen_root(path.read_bytes(), now_ms)
    except OSError as error:
        remedy = "Start with `posthouse up`, or give the directory with --dir (or POSTHOUSE_DIR)"
        raise OperatorError(f"{path}: {error.strerror}", remedy) from None
    except ProtocolError as error:
        remedy = "Get the root document again, from somebody you trust"
        raise OperatorError(f"{path} is no root document: {error.text}", remedy) from None


def check_name(name: str) -> str:
    """A name in any script that is safe as a directory's. Raises OperatorError."""
    good = 0 < len(name) <= MAX_NAME and len(name.encode("utf-8", "surrogatepass")) <= 2 * MAX_NAME
    if not good or not name.isprintable() or name[0] in ".-" or set(name) & set("/\\:+") or name != name.strip():
        remedy = f"Take at most {MAX_NAME} letters or digits, without / \\ : + and not starting with . or -"
        raise OperatorError(f"{name!r} cannot be a name here", remedy)
    return name
