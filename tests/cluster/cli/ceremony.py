"""What ceremonies are made of: the commands of `posthouse federation`, at a table in the working directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from cluster.cli.exits import Exit
from cluster.cli.options import now_ms
from relay.core.tlog import COSIGNATURE, ED25519, SignerKey
from relay.core.trust import Root, verify_root

Posthouse = Callable[..., Result]
DIR = ("--dir", "table")
LOG = str(SignerKey("norden/log", ED25519, b"l" * 32).verifier)
WITNESS = str(SignerKey("norden/witness", COSIGNATURE, b"w" * 32).verifier)
PEOPLE = ("anna", "bela", "cyra")


def region_file(name: str) -> str:
    return f"{name}/{name}.region"


def published() -> Root:
    return verify_root(Path("table/root.bin").read_bytes(), now_ms())


def said(result: Result) -> str:
    return result.stdout


def sign(posthouse: Posthouse, name: str, *keys: str) -> None:
    for key in keys:
        posthouse("federation", *signing(name, f"table/secrets/{key}.pem"), "--yes")


def signing(name: str, key: str, *trusted: str) -> list[str]:
    own = trusted or (("table/root.bin",) if Path("table/root.bin").exists() else ())
    return ["sign", f"table/staged/{name}", "--key", key, *(word for path in own for word in ("--trusted", path))]


def refused(posthouse: Posthouse, *args: str, status: int = Exit.OPERATOR, answer: str = "") -> str:
    return posthouse("federation", *args, status=status, answer=answer).stderr
