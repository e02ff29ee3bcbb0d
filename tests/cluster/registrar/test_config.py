"""A registrar's config: what it takes from the root document, and what is wrong with it in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.config_keys import Address
from relay.core.tlog import UnsoundTrust
from cluster.provision import write_public, write_secret
from cluster.registrar.config import Peer, RegistrarConfig, load_config
from cluster.registrar.endpoints import Endpoint
from cluster.registrar.make import make_registrar
from relay.core.trust import Policy, RootCell, RootRegion, trust_of, verify_root
from relay.errors import ConfigError, OperatorError
from relay.limits import DAY
from tests.cluster.registrar.site import NOW, REGIONS, registrar_key
from tests.roots import signed_root

Change = Callable[[str], str]


def make(directory: Path, named: bool = True, quorum: int = 2) -> dict[str, Peer]:
    """Three regions' registrars side by side, and a root document that names them, or does not."""
    peers, regions = {}, []
    for number, name in enumerate(REGIONS):
        write_secret(directory / "secrets" / f"{name}.registrar.key", bytes(registrar_key(name)).hex().encode())
        peer = make_registrar(
            directory / f"registrar-{name}", name, None, Address("127.0.0.1", 9301 + number), f"{name}.example",
            port=9301, witnesses=None, now_ms=NOW,
        )  # fmt: skip
        peers[name] = peer
        entry = RootRegion(name, b"", bytes(registrar_key(name).verify_key), (RootCell(f"{name}/1", ()),))
        if named:
            entry = msgspec.structs.replace(
                entry, log_key=str(peer.log), witness_key=str(peer.witness), policy=Policy(quorum=quorum),
                registrar_url=f"http://127.0.0.1:{number + 1}",
            )  # fmt: skip
        regions.append(entry)
    write_public(directory / "root.bin", signed_root(regions, NOW + DAY))
    return peers


def load(directory: Path, change: Change = lambda text: text) -> RegistrarConfig:
    path = directory / "registrar-norden" / "registrar.toml"
    path.write_text(change(path.read_text()))
    return load_config(path.parent, NOW)


def test_what_the_root_says_is_believed(tmp_path: Path) -> None:
    peers = make(tmp_path)
    config = load(tmp_path)
    assert config.k == 2 and [peer.region for peer in config.peers] == ["sauda", "vika"]
    assert config.peers[0].log == peers["sauda"].log and config.peers[1].url == "http://127.0.0.1:3"
    assert config.inner == f"unix:{tmp_path / 'registrar-norden' / 'inner'}" and not config.outer and not config.open
    root = verify_root((tmp_path / "root.bin").read_bytes(), NOW)
    assert trust_of(root, "norden") == config.trust
    assert {key.name for key in config.trust.witnesses} == {"sauda.example/witness", "vika.example/witness"}


def test_before_the_root_says_it_the_config_does(tmp_path: Path) -> None:
    peers = make(tmp_path, named=False)
    other = peers["sauda"]
    text = f'\n[[peers]]\nregion = "sauda"\nlog_key = "{other.log}"\nwitness_key = "{other.witness}"\n'
    text += 'url = "unix:there"\n'
    config = load(tmp_path, lambda before: before.replace("[paths]", "witnesses = 1\n[paths]") + text)
    assert config.k == 1 and config.peers[0].url == f"unix:{tmp_path / 'registrar-norden' / 'there'}"
    with pytest.raises(UnsoundTrust, match="names no log"):
        trust_of(config.root, "norden")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda text: text + "\nnonsense", "is not TOML"),
        (lambda text: text.replace("[listen]", "[listen]\nnonsense = 1"), "nonsense"),
        (lambda text: text.replace('region = "norden"', 'region = "lund"'), "no region 'lund'"),
        (lambda text: text.replace('region = "norden"', 'region = "sauda"'), "another registrar for sauda"),
        (lambda text: text.replace("[paths]", "witnesses = 1\n[paths]"), "names this region's log"),
        (lambda text: text.replace("secrets/log.key", "secrets/witness.key"), "of another kind"),
        (lambda text: text.replace("secrets/log.key", "../registrar-sauda/secrets/log.key"), "another log key"),
        (lambda text: text.replace("secrets/log.key", "secrets/none.key"), "No such file"),
        (lambda text: text.replace("secrets/log.key", "registrar.toml"), "may be read by others"),
        (lambda text: text.replace("unix:inner", "http://0.0.0.0:80"), "loopback addresses only"),
        (lambda text: text.replace("unix:inner", "https://0.0.0.0:80"), "not a loopback address"),
        (lambda text: text.replace("../root.bin", "registrar.toml"), "is no root document"),
        (lambda text: text.replace("../root.bin", "none.bin"), "No such file"),
    ],
)
def test_mistakes_are_told_in_words(tmp_path: Path, change: Change, what: str) -> None:
    make(tmp_path)
    with pytest.raises(ConfigError, match=what):
        load(tmp_path, change)


def test_a_quorum_that_cannot_be_had(tmp_path: Path) -> None:
    make(tmp_path, quorum=3)
    with pytest.raises(ConfigError, match="can never be had"):
        load(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"witness_key": "nonsense"},
        {"witness_key": "norden's"},
        {"witness_key": "sauda's"},
        {"log_key": "nonsense"},
        {"log_key": "norden's"},
        {"registrar_url": "ftp://a:1"},
        {"registrar_url": "https://127.0.0.1:1", "authority": b""},
        {"registrar_url": "https://127.0.0.1:1", "authority": b"junk"},
    ],
)
def test_what_a_region_says_wrongly_of_itself_stops_no_other(tmp_path: Path, wrong: dict[str, Any]) -> None:
    peers = make(tmp_path, quorum=1)
    known = {"norden's": peers["norden"].log, "sauda's": peers["sauda"].witness}
    root = verify_root((tmp_path / "root.bin").read_bytes(), NOW)
    changed = {key: str(known[value]) if value in known else value for key, value in wrong.items()}
    regions = [
        msgspec.structs.replace(region, **changed) if region.name == "vika" else region
        for region in root.payload.regions
    ]
    (tmp_path / "root.bin").write_bytes(signed_root(regions, NOW + DAY))
    config = load(tmp_path)
    assert [peer.region for peer in config.peers] == ["sauda"] and config.trust.k == 1
    [said] = config.unusable
    assert said.startswith("vika: ")
    trust = trust_of(verify_root((tmp_path / "root.bin").read_bytes(), NOW), "norden")
    assert "sauda.example/witness" in {key.name for key in trust.witnesses}


def test_no_config_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path, NOW)


@pytest.mark.parametrize("url", ["", "ftp://a:1", "http://a.example:1", "https://a.example", "unix:", "http:[::1]:1"])
def test_what_is_no_endpoint(url: str) -> None:
    with pytest.raises(OperatorError):
        Endpoint.parse(url)
