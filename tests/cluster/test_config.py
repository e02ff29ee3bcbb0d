"""Every mistake in a config is found, all at once, with where it is and what to do."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from cluster.config import load_config
from cluster.config_keys import SECTIONS, Address
from cluster.env import RealEnv
from cluster.kept import keep_root
from cluster.local import Layout, make_federation
from cluster.federation.keys import load_signer
from cluster.federation.making import ROOT_LIFETIME, Keyring, make_federation_root
from relay.core.trust import RootNode, RootRegion, verify_root
from relay.errors import ConfigError
from relay.limits import DAY

YEARS = 366 * DAY


@dataclass
class Town:
    """A federation on disk whose first region's config is about to be spoiled."""

    layout: Layout

    @property
    def path(self) -> Path:
        return self.layout.node("norden").config_path

    def edit(self, old: str, new: str) -> None:
        text = self.path.read_text()
        assert old in text
        self.path.write_text(text.replace(old, new, 1))

    def address(self, key: str, new: str) -> None:
        self.edit(str(getattr(self.layout.node("norden"), key)), new)

    def add(self, text: str) -> None:
        self.path.write_text(f"{self.path.read_text()}\n{text}\n")

    def trust_newer(self) -> None:
        """The node has trusted a newer root document than the one that lies there."""
        regions = self.layout.home.root(RealEnv().clock.wall_ms()).payload.regions
        keep_root(self.layout.node("norden").data_dir, newer(self, regions))

    def findings(self, now_ms: int | None = None) -> dict[str, tuple[str, str]]:
        with pytest.raises(ConfigError) as caught:
            load_config(self.path, now_ms)
        found: dict[str, tuple[str, str]] = {}
        for where, what, remedy in caught.value.findings:
            before = found.get(where, ("", ""))
            found[where] = (before[0] + what, before[1] + remedy)
        return found


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(make_federation(tmp_path / "fed", ["norden", "sauda"], RealEnv(), borders=True))


def test_what_init_writes_is_good(town: Town) -> None:
    config = load_config(town.path)
    node = town.layout.node("norden")
    assert (config.node.region, config.node.cell, config.node.name) == ("norden", "norden/1", "n1")
    assert (config.listen.clients, config.listen.admin) == (node.clients_addr, node.admin_addr)
    assert config.listen.tls and config.listen.unix is None and config.log.level == "info"
    assert config.paths.data == node.directory / "data" and config.paths.storage_key.is_file()
    assert config.source == town.path


def test_routes_replace_what_the_root_says_and_nothing_else(town: Town) -> None:
    config = load_config(town.path)
    signed = verify_root(config.root.signed, 0)
    (border,) = [border for border in town.layout.file.borders if border.source == "norden"]
    links = {node.link for region in config.root.payload.regions for cell in region.cells for node in cell.nodes}
    assert links == {f"127.0.0.1:{border.port}", str(town.layout.node("norden").links_addr)}
    assert config.root.digest == signed.digest and config.root.payload != signed.payload


Spoil = Callable[[Town], object]
MISTAKES: dict[str, tuple[Spoil, str, str, str]] = {
    # what is wrong: (how to spoil it, where, what, remedy)
    "unknown key": (lambda t: t.edit("links =", "linsk ="), "listen.linsk", "not a known key", "Did you mean 'links'?"),
    "key elsewhere": (
        lambda t: t.edit("[listen]", '[listen]\nstorage_key = "x"'),
        "listen.storage_key", "not a known key", "[paths]",
    ),
    "nonsense key": (lambda t: t.add("[log]\nzzzqq = 1"), "log.zzzqq", "not a known key", "level"),
    "unknown section": (lambda t: t.add("[limit]"), "limit", "not a known key", "'limits'"),
    "section is a value": (lambda t: t.edit("[node]", "log = 3\n[node]"), "log", "not a section", "[log]"),
    "missing": (lambda t: t.edit("links =", "linsk ="), "listen.links", "missing", "'linsk'"),
    "wrong type": (lambda t: t.edit("tls = true", 'tls = "yes"'), "listen.tls", "Expected `bool`", "node.toml"),
    "too loose": (lambda t: t.add("[limits]\nconnections = 10_000_000"), "limits.connections", "<= 20000", "node.toml"),
    "bad level": (lambda t: t.add('[log]\nlevel = "loud"'), "log.level", "loud", "One of"),
    "bad name": (lambda t: t.edit('"n1"', '"../n1"'), "node.name", "match", "node.toml"),
    "no port": (lambda t: t.address("admin_addr", "127.0.0.1"), "listen.admin", "host:port", ""),
    "port 0": (
        lambda t: t.address("admin_addr", "127.0.0.1:0"), "listen.admin", "between 1 and", "",
    ),
    "IPv6 bare": (lambda t: t.address("admin_addr", "::1:9"), "listen.admin", "[::1]", ""),
    "admin outside": (
        lambda t: t.address("admin_addr", "0.0.0.0:9"), "listen.admin", "outside", "127.0.0.1",
    ),
    "taken twice": (
        lambda t: t.address("admin_addr", f"127.1.1.1:{t.layout.node('norden').links_addr.port}"),
        "listen.admin", "already taken by listen.links", "another port",
    ),
    "plain outside": (
        lambda t: (
            t.address("clients_addr", "192.0.2.1:443"), t.edit("tls = true", "tls = false"),
        ),
        "listen.tls", "without encryption", "terminator",
    ),
    "nobody can come": (lambda t: t.edit("clients =", "unix = ''\n#"), "listen.clients", "nobody", "Set one"),
    "other region": (lambda t: t.edit('region = "norden"', 'region = "nordem"'), "node.region", "root", "'norden'"),
    "other cell": (lambda t: t.edit('"norden/1"', '"norden/2"'), "node.cell", "root document", "'norden/1'"),
    "cell of another": (lambda t: t.edit('"norden/1"', '"sauda/1"'), "node.cell", "not a cell of region", "norden/1"),
    "other node": (lambda t: t.edit('"n1"', '"n2"'), "node.name", "root document", "n1"),
    "other link": (
        lambda t: t.address("links_addr", "127.0.0.1:9"),
        "listen.links", "dial", "links_advertised",
    ),
    "address of another": (
        lambda t: t.address("admin_addr", str(t.layout.node("sauda").links_addr)),
        "listen.admin", "address of node sauda/1/n1", "another port",
    ),
    "route of two": (
        lambda t: t.add(f'"norden/1/n1" = "127.0.0.1:{t.layout.file.borders[0].port}"'),
        "routes", "address of sauda/1/n1 and of norden/1/n1", "its own",
    ),
    "route to nobody": (
        lambda t: t.edit('"sauda/1/n1"', '"sauda/1/n2"'), "routes.'sauda/1/n2'", "root", "'sauda/1/n1'",
    ),
    "bad route": (lambda t: t.add('"sauda/1/n3" = 5'), "routes.'sauda/1/n3'", "host:port", '"region/cell/node"'),
    "no root": (lambda t: t.layout.home.root_path.unlink(), "paths.root", "No such file", "mend the path"),
    "root changed": (
        lambda t: t.layout.home.root_path.write_bytes(t.layout.home.root_path.read_bytes()[:-1] + b"?"),
        "paths.root", "not the one that was published", "somebody you trust",
    ),
    "not a root": (lambda t: t.layout.home.root_path.write_bytes(b"hello"), "paths.root", "msgpack", "trust"),
    "an older root": (lambda t: t.trust_newer(), "paths.root", "version 1 after 2", "newest root document"),
    "another root": (
        lambda t: t.edit("[paths]", f'[paths]\nfederation_id = "{"0" * 64}"'), "paths.federation_id", "pin", "",
    ),
    "bad pin": (
        lambda t: t.edit("[paths]", '[paths]\nfederation_id = "abc"'), "paths.federation_id", "match", "64 hex",
    ),
    "no key": (lambda t: (t.path.parent / "tls/node.key").unlink(), "paths.private_key", "No such file", "init"),
    "wide key": (lambda t: (t.path.parent / "tls/node.key").chmod(0o640), "paths.private_key", "0640", "chmod 600"),
    "wide storage key": (
        lambda t: (t.layout.home.secrets / "norden.storage.key").chmod(0o644), "paths.storage_key", "0644", "chmod 600",
    ),
    "bad storage key": (
        lambda t: (t.layout.home.secrets / "norden.storage.key").write_text("zz"), "paths.storage_key", "key", "",
    ),
    "key in the data": (
        lambda t: (
            (t.path.parent / "data/node.key").write_bytes((t.path.parent / "tls/node.key").read_bytes()),
            (t.path.parent / "data/node.key").chmod(0o600), t.edit("tls/node.key", "data/node.key"),
        ),
        "paths.private_key", "data directory", "outside",
    ),
    "data is a file": (lambda t: t.edit('"data"', '"tls/node.pem"'), "paths.data", "not a directory", "directory"),
    "not a certificate": (
        lambda t: (t.path.parent / "tls/node.pem").write_text("hello"), "paths.certificate", "PEM", "issued",
    ),
    "certificate of another": (
        lambda t: (t.path.parent / "tls/node.pem").write_bytes(
            (t.layout.node("sauda").directory / "tls/node.pem").read_bytes()
        ),
        "paths.certificate", "posthouse://sauda/1/n1", "own certificate",
    ),
    "key of another": (
        lambda t: (t.path.parent / "tls/node.key").write_bytes(
            (t.layout.node("sauda").directory / "tls/node.key").read_bytes()
        ),
        "paths.private_key", "does not belong", "made with",
    ),
    "not a key": (lambda t: (t.path.parent / "tls/node.key").write_text("x"), "paths.private_key", "PEM", "made with"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_found(town: Town, mistake: str) -> None:
    spoil, where, what, remedy = MISTAKES[mistake]
    spoil(town)
    found = town.findings()
    assert where in found, found
    assert what in found[where][0] and remedy in found[where][1], found[where]
    assert found[where][1], "every finding has a remedy"


def test_all_at_once(town: Town) -> None:
    for name in ("other node", "wide key", "wide storage key", "too loose", "admin outside", "route to nobody"):
        MISTAKES[name][0](town)
    places = {"node.name", "paths.private_key", "paths.storage_key", "limits.connections", "listen.admin"}
    assert town.findings().keys() == {*places, "routes.'sauda/1/n2'", "paths.certificate"}


def test_a_wrong_value_does_not_hide_the_others(town: Town) -> None:
    for name in ("bad pin", "wide key", "data is a file", "not a certificate"):
        MISTAKES[name][0](town)
    town.edit("tls = true", 'tls = "yes"')
    found = town.findings()
    assert found.keys() == {
        "paths.federation_id", "paths.private_key", "paths.data", "paths.certificate", "listen.tls",
    }  # fmt: skip
    assert "'yes'" in found["listen.tls"][0]


def test_issued_by_another_authority(town: Town, tmp_path: Path) -> None:
    other = make_federation(tmp_path / "other", ["norden"], RealEnv()).node("norden").directory
    for name in ("tls/node.pem", "tls/node.key"):
        (town.path.parent / name).write_bytes((other / name).read_bytes())
    assert "not issued by the authority" in town.findings()["paths.certificate"][0]


def test_expired(town: Town) -> None:
    now_ms = RealEnv().clock.wall_ms()
    found = town.findings(now_ms + 2 * YEARS)
    assert "expired" in found["paths.root"][0] and "expired" in found["paths.certificate"][0]
    assert "valid only from" in town.findings(now_ms - YEARS)["paths.certificate"][0]


def test_plain_urls_with_tls(town: Town) -> None:
    plain = ("ws://127.0.0.1:1",)
    sign_again(town, lambda nodes: tuple(msgspec.structs.replace(node, clients=plain) for node in nodes))
    assert "without TLS" in town.findings()["listen.tls"][0]


def test_a_root_that_gives_two_nodes_one_address(town: Town) -> None:
    sign_again(town, lambda nodes: (*nodes, msgspec.structs.replace(nodes[0], name="n2")))
    town.edit("[routes]\n", "[routes]\n#")
    links = town.layout.node("norden").links_addr
    assert f"{links} is the address of norden/1/n2 and of norden/1/n1" in town.findings()["paths.root"][0]


def test_a_region_that_claims_anothers_addresses_keeps_nobody_from_starting(town: Town) -> None:
    """It signs its statement alone. Whoever is met at an address proves who that is."""
    town.edit("[routes]\n", "[routes]\n#")
    home, now_ms, replace = town.layout.home, RealEnv().clock.wall_ms(), msgspec.structs.replace
    norden, *others = home.root(now_ms).payload.regions
    town.edit("[listen]", '[listen]\nlinks_advertised = "norden.example:1"')
    theirs = replace(norden.cells[0].nodes[0], link="norden.example:1", clients=("wss://norden.example:2",))
    norden = replace(norden, cells=(replace(norden.cells[0], nodes=(theirs,)),))
    place = town.layout.node("norden")
    claimed = [RootNode("n1", theirs.link, theirs.clients), RootNode("n2", str(place.links_addr), ())]
    claimed.append(RootNode("n3", str(place.admin_addr), (f"ws://{place.clients_addr}",)))
    spoiled = [replace(one, cells=(replace(one.cells[0], nodes=tuple(claimed)),)) for one in others]
    home.root_path.write_bytes(newer(town, [norden, *spoiled]))
    assert load_config(town.path).root.payload.version == 2


def newer(town: Town, regions: Sequence[RootRegion]) -> bytes:
    """The next root document, with these regions."""
    home, now_ms = town.layout.home, RealEnv().clock.wall_ms()
    root, keeper, online = (load_signer(home.secrets / f"{name}.pem") for name in ("root-1", "keeper-1", "online"))
    by_region = {region.name: load_signer(home.secrets / f"{region.name}.region.pem") for region in regions}
    keys = Keyring((root,), (keeper,), online, by_region)
    return make_federation_root("local", regions, keys, now_ms, ROOT_LIFETIME, home.root_path.read_bytes())


def sign_again(town: Town, change: Callable[[tuple[RootNode, ...]], tuple[RootNode, ...]]) -> None:
    """A root document whose cells have other nodes."""
    home, now_ms = town.layout.home, RealEnv().clock.wall_ms()
    replace = msgspec.structs.replace
    regions = [
        replace(region, cells=tuple(replace(cell, nodes=change(cell.nodes)) for cell in region.cells))
        for region in home.root(now_ms).payload.regions
    ]
    home.root_path.write_bytes(newer(town, regions))


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not UTF-8"),
        (lambda path: path.write_text("[node\n"), "not TOML"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, write: Callable[[Path], object], what: str) -> None:
    path = tmp_path / "node.toml"
    write(path)
    with pytest.raises(ConfigError, match=what) as caught:
        load_config(path)
    assert caught.value.findings[0][0] == "file"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9001", Address("127.0.0.1", 9001)),
        ("[::1]:9001", Address("::1", 9001)),
        ("relay.example:443", Address("relay.example", 443)),
    ],
)
def test_addresses_round_trip(text: str, address: Address) -> None:
    assert Address.parse(text) == address and str(address) == text


@pytest.mark.parametrize("text", ["", ":", "a:", ":1", "a:b", "a:65536", "a:-1", "a:١", "::1:9", "a:1:2"])
def test_bad_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"host:port|no port"):
        Address.parse(text)


def test_configs_node_toml_has_every_key_and_no_other() -> None:
    tables = tomllib.loads((Path(__file__).parents[2] / "configs" / "node.toml").read_text("utf-8"))
    assert tables.pop("routes") == {}
    assert {name: set(table) for name, table in tables.items()} == {
        name: set(shape.__struct_fields__) for name, shape in SECTIONS.items()
    }
    for name, shape in SECTIONS.items():
        for field in msgspec.structs.fields(shape):
            if field.default is not msgspec.NODEFAULT and (name, field.name) != ("listen", "clients"):
                shown = tables[name][field.name]
                assert (shown or None) == (field.default or None), f"{name}.{field.name} shows another default"


def test_running_as_another_user_is_seen(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be written" in town.findings()["paths.data"][0]
