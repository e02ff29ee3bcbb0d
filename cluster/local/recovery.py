"""The file that a recovery key is kept in: a few lines of text, to be printed or put away."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nacl.signing import SigningKey

from cluster.provision import write_secret
from relay.client import Card
from relay.errors import OperatorError


@dataclass(frozen=True)
class Recovery:
    """A recovery file: whose it is, and the key."""

    card: Card
    key: SigningKey

    def write(self, path: Path) -> None:
        """A new file of mode 0600. Raises OperatorError."""
        lines = (
            "# The recovery key of a Posthouse user. Whoever has it can put new devices in the place of all others:",
            "# keep it on paper, or on a disk that is put away, not beside the devices.",
            f"user {self.card}",
            f"key {bytes(self.key).hex()}",
        )
        write_secret(path, "".join(f"{line}\n" for line in lines).encode())

    @classmethod
    def read(cls, path: Path) -> Recovery:
        """Raises OperatorError."""
        try:
            lines = [line.split() for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
            fields = dict(line for line in lines if line)
            return cls(Card.parse(fields["user"]), SigningKey(bytes.fromhex(fields["key"])))
        except OSError as error:
            raise OperatorError(f"{path}: {error.strerror}", "Name the file of `--recovery`") from None
        except (OperatorError, ValueError, KeyError):
            raise OperatorError(
                f"{path} is no recovery file", "It has a line `user <card>` and one `key <64 hex digits>`"
            ) from None
