"""Making a registrar's directory: its keys, its certificate and its config."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cluster.config_keys import Address
from relay.core.tlog import COSIGNATURE, ED25519, SignerKey
from cluster.pki import issue_node
from cluster.provision import write_public, write_secret
from cluster.registrar.config import FILE, Peer
from cluster.registrar.endpoints import ROLE
from relay.errors import OperatorError, TrustError

_NODE: Final = "r1"  # a region has one registrar, whose registry is one file


def make_registrar(
    directory: Path, region: str, authority: tuple[bytes, bytes] | None, address: Address, name: str, *, port: int,
    witnesses: int | None, now_ms: int,
) -> Peer:  # fmt: skip
    """Write registrar.toml, new log and witness keys, and, with the region's `authority` (certificate DER, key PEM), a
    certificate for the outer face, which is then known as `address` and listens at `port`. `name`: what the keys' names
    begin with. `witnesses`: None where the root says it. Returns what others need to know. Raises OperatorError."""
    try:
        log = SignerKey(f"{name}/log", ED25519, os.urandom(32))
        witness = SignerKey(f"{name}/witness", COSIGNATURE, os.urandom(32))
    except TrustError as error:
        raise OperatorError(error.text, "Choose another --name") from None
    listen = ['inner = "unix:inner"']
    paths = {"root": "../root.bin", "data": "data", "registrar_key": f"../secrets/{region}.registrar.key"}
    paths |= {"log_key": "secrets/log.key", "witness_key": "secrets/witness.key"}
    if authority is not None:
        certificate, key = issue_node(*authority, region, f"{region}/{ROLE}", _NODE, [address.host], now_ms=now_ms)
        write_public(directory / "tls" / "registrar.pem", certificate)
        write_secret(directory / "tls" / "registrar.key", key)
        paths |= {"certificate": "tls/registrar.pem", "private_key": "tls/registrar.key"}
        listen.append(f'outer = "https://{Address("0.0.0.0", port)}"')
    for path, signer in (("log.key", log), ("witness.key", witness)):
        write_secret(directory / "secrets" / path, signer.export().encode() + b"\n")
    lines = [
        "# configs/registrar.toml explains every key.", f'region = "{region}"',
        *([] if witnesses is None else [f"witnesses = {witnesses}"]), "",
        "[paths]", *(f'{key} = "{value}"' for key, value in paths.items()), "", "[listen]", *listen, "",
    ]  # fmt: skip
    write_public(directory / FILE, "\n".join(lines).encode())
    return Peer(region, log.verifier, witness.verifier, f"https://{address}")
