"""A registrar's directory: registrar.toml, and what it points at.

    registrar.toml       region, files, where to listen, the other regions' keys and addresses
    secrets/log.key      signs checkpoints             a line of C2SP's form, mode 0600, as are the others
    secrets/witness.key  signs cosignatures
    tls/                 certificate and key of the outer face
    data/                registry and witness's memory, and what forks left (evidence/)

The registrar's own key, which signs home records, stays where the config says; no relay has any of these keys.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from nacl.signing import SigningKey

from cluster.config import read_toml
from cluster.config_keys import Digest
from relay.core.tlog import COSIGNATURE, ED25519, SignerKey, Trust, VerifierKey
from cluster.enrolment import check_registrar
from cluster.kept import kept_root
from cluster.provision import load_signing_key
from cluster.registrar.endpoints import Endpoint, caller
from relay.core.shapes import Name
from relay.core.trust import Root, follow_root, witnesses_of
from relay.errors import ConfigError, OperatorError, ProtocolError, TrustError

FILE: Final = "registrar.toml"
_REMEDY: Final = "configs/registrar.toml explains every key"


class _Paths(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    root: str
    data: str
    registrar_key: str
    log_key: str
    witness_key: str
    certificate: str = ""
    private_key: str = ""
    federation_id: Digest = ""


class _Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inner: str
    outer: str = ""
    open: bool = False


class _Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    region: Name
    log_key: str
    witness_key: str
    url: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    region: Name
    paths: _Paths
    listen: _Listen
    witnesses: int | None = None
    peers: tuple[_Peer, ...] = ()
    log_level: str = "info"


@dataclass(frozen=True)
class Peer:
    """Another region: its log, its witness, and where its registrar is."""

    region: str
    log: VerifierKey
    witness: VerifierKey
    url: str


@dataclass(frozen=True)
class RegistrarConfig:
    """A config that was checked as a whole; keys are loaded, paths absolute, the root verified."""

    source: Path
    region: str
    root: Root
    root_path: Path
    data: Path
    registrar: SigningKey
    registrar_path: Path
    log: SignerKey
    witness: SignerKey
    inner: str
    outer: str  # empty: none
    open: bool  # new users also by the outer face
    certificate: Path | None
    private_key: Path | None
    k: int
    peers: tuple[Peer, ...]
    log_level: str
    unusable: tuple[str, ...] = ()  # regions of which the root says what cannot be used, and why

    @property
    def trust(self) -> Trust:
        """Whom to believe about this region's own log. Raises UnsoundTrust."""
        return Trust(self.log.verifier, tuple(peer.witness for peer in self.peers), self.k)


def config_path(path: Path) -> Path:
    """The config that PATH is, or has in it."""
    return path / FILE if path.is_dir() else path


def load_config(path: Path, now_ms: int) -> RegistrarConfig:
    """Read and check a config. Raises ConfigError, OperatorError."""
    path = config_path(path).absolute()
    file = _read(path)
    base, paths = path.parent, file.paths
    try:
        root = _root(base / paths.root, base / paths.data, paths.federation_id, now_ms)
        registrar = load_signing_key(base / paths.registrar_key)
        check_registrar(root, file.region, registrar)
        k, peers, unusable = _others(file, root, base)
        config = RegistrarConfig(
            source=path,
            region=file.region,
            root=root,
            root_path=base / paths.root,
            data=base / paths.data,
            registrar=registrar,
            registrar_path=base / paths.registrar_key,
            log=load_key(base / paths.log_key, ED25519),
            witness=load_key(base / paths.witness_key, COSIGNATURE),
            inner=_local(file.listen.inner, base),
            outer=_local(file.listen.outer, base) if file.listen.outer else "",
            open=file.listen.open,
            certificate=base / paths.certificate if paths.certificate else None,
            private_key=base / paths.private_key if paths.private_key else None,
            k=k,
            peers=peers,
            log_level=file.log_level,
            unusable=unusable,
        )
        _check(config)
    except (OperatorError, TrustError) as error:
        raise ConfigError(str(path), [("file", error.text, error.remedy or _REMEDY)]) from None
    return config


def _others(file: _File, root: Root, base: Path) -> tuple[int, tuple[Peer, ...], tuple[str, ...]]:
    """How many witnesses count, and the other regions: as the root says, or, where it names no log of this region, as
    the config does. What a region says wrongly of itself in the root leaves out that region, and no other."""
    own = root.region(file.region)
    if not own.log_key:
        return file.witnesses or 0, tuple(_peer(peer, base) for peer in file.peers), ()
    if file.peers or file.witnesses is not None:
        raise OperatorError("the root document names this region's log", "Leave out witnesses and [[peers]]")
    log = VerifierKey.parse(own.log_key)
    witnesses, peers, unusable = witnesses_of(root, file.region, log), dict[str, Peer](), []
    for other in root.payload.regions:
        if other.name == file.region or not (other.log_key and other.witness_key and other.registrar_url):
            continue
        try:
            peer = _peer(_Peer(other.name, other.log_key, other.witness_key, other.registrar_url), base)
            caller(peer.region, peer.url, root, peer.region)
        except (OperatorError, TrustError) as error:
            unusable.append(f"{other.name}: {error.text}")
            continue
        if other.name in witnesses and peer.log.name not in {log.name, *peers}:
            peers[peer.log.name] = peer
        else:
            unusable.append(f"{other.name}: its log's name or its witness's key is another region's")
    return own.policy.quorum, tuple(peers.values()), tuple(unusable)


def _check(config: RegistrarConfig) -> None:
    _ = config.trust
    own = config.root.region(config.region)
    for what, key, named in (("log", config.log, own.log_key), ("witness", config.witness, own.witness_key)):
        if named and named != str(key.verifier):
            remedy = "Restore the key, or have the root name this one: `posthouse init statement`"
            raise OperatorError(f"the root document names another {what} key than the one that is here", remedy)
    inner = Endpoint.parse(config.inner)
    if inner.address is not None and not inner.address.loopback:
        raise OperatorError("[listen] inner is not a loopback address", "Use unix:inner: it gives out users' records")
    for peer in config.peers:
        config.root.region(peer.region)
        if peer.region == config.region:
            raise OperatorError(f"{peer.region} is among its own peers", "A region does not witness its own log")
    logs = [peer.log.name for peer in config.peers]
    if len({config.log.name, *logs}) <= len(logs):
        raise OperatorError("two logs have one name", "Each region's log has a name of its own")


def _read(path: Path) -> _File:
    try:
        return msgspec.convert(read_toml(path, "Make one with `posthouse registrar init`"), _File)
    except msgspec.ValidationError as error:
        raise ConfigError(str(path), [("file", str(error), _REMEDY)]) from None


def _root(path: Path, data: Path, pin: str, now_ms: int) -> Root:
    """The root document, which is or follows what this registrar has trusted before."""
    try:
        return follow_root(path.read_bytes(), kept_root(data), now_ms, bytes.fromhex(pin) or None)
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}", "Take in the root with `posthouse init join`") from None
    except ProtocolError as error:
        raise OperatorError(f"{path} is no root document: {error.text}", "Get it again") from None


def _peer(peer: _Peer, base: Path) -> Peer:
    log, witness = VerifierKey.parse(peer.log_key), VerifierKey.parse(peer.witness_key)
    if (log.kind, witness.kind) != (ED25519, COSIGNATURE):
        raise OperatorError(f"peer {peer.region}: log_key and witness_key are of other kinds", "Are they swapped?")
    Endpoint.parse(peer.url)
    return Peer(peer.region, log, witness, _local(peer.url, base))


def _local(url: str, base: Path) -> str:
    """A Unix socket's path is relative to the config, as all paths are."""
    return f"unix:{base / url.removeprefix('unix:')}" if url.startswith("unix:") else url


def load_key(path: Path, kind: int) -> SignerKey:
    """A key of C2SP's form, which only its owner may read. Raises OperatorError."""
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise OperatorError(f"{path} may be read by others", f"Run: chmod 600 {path}")
        key = SignerKey.parse(path.read_text("utf-8").strip())
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}", "Restore what `posthouse registrar init` made") from None
    except (UnicodeDecodeError, TrustError):
        raise OperatorError(f"{path} is not a key of the form PRIVATE+KEY+…", "Restore it from its backup") from None
    if key.kind != kind:
        raise OperatorError(f"{path} is a key of another kind", "Are those of log and witness swapped?")
    return key
