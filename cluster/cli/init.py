"""`posthouse init …`: what an operator of one region among several needs, step by step."""

from __future__ import annotations

import re
from pathlib import Path

import click
import msgspec
from nacl.signing import SigningKey

from cluster.cli.directory import fingerprint
from cluster.cli.options import now_ms
from cluster.config import load_config
from cluster.config_keys import Address
from cluster.local.home import Home, read_root
from cluster.provision import (
    Place, load_signing_key, new_region_keys, new_root, region_entry, write_node, write_public, write_secret,
)  # fmt: skip
from relay.client import update_root
from relay.core.codec import Decoder, encode
from relay.core.shapes import Name
from relay.core.trust import Root, RootRegion, verify_root
from relay.errors import OperatorError, ProtocolError
from relay.journal.seal import StorageRing
from relay.limits import KIB

_read_region: Decoder[RootRegion] = Decoder(RootRegion, "region file", 64 * KIB)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
_dir_option = click.option("--dir", "directory", type=click.Path(path_type=Path), required=True, help="Where to write.")


@click.group()
def init() -> None:
    """Set up real regions, each by its own operator.

    \b
    1. Each operator makes a region, on a machine of their own:
         posthouse init region norden --host relay.norden.example --dir norden
       norden/server/ is what goes to the server, norden/secrets/ stays here,
       and norden/norden.region goes to whoever keeps the root.
    2. The root's keeper signs a root document over all regions:
         posthouse init root norden.region sauda.region --dir root
       and sends root/root.bin to every operator. Over the phone they compare
       the fingerprints that steps 1 and 2 print.
    3. Each operator takes the root in, which checks that it has the region
       as it was made:
         posthouse init join root.bin --dir norden
    4. Copy norden/server/ to the server, and there:
         posthouse config check server/node.toml
         posthouse node run server/node.toml
    5. Users are made where norden/secrets/ is (the registrar's key signs them):
         posthouse user create alice --region norden --dir norden

    A region that comes later: step 1, then step 2 with the new file in the
    same --dir (the root gets a new version), then step 3 for everybody.
    """


@init.command()
@click.argument("region")
@click.option("--host", required=True, help="Name or address under which clients and other regions reach the server.")
@click.option("--clients", default=443, show_default=True, type=click.IntRange(1, 65535), help="Port for clients' wss.")
@click.option("--links", default=9101, show_default=True, type=click.IntRange(1, 65535), help="Port for other regions.")
@click.option("--admin", default=9201, show_default=True, type=click.IntRange(1, 65535), help="Port for /metrics.")
@click.option("--listen", default="0.0.0.0", show_default=True, metavar="ADDRESS", help="Where the server listens.")
@_dir_option
def region(region: str, host: str, clients: int, links: int, admin: int, listen: str, directory: Path) -> None:
    """Make the keys, certificate and config of REGION and its first node.

    In DIR: server/ (config, node certificate and key, storage key: copy it to the server), secrets/ (the keys of the
    region's authority and registrar: keep them here, with a backup) and REGION.region (nothing secret: for the root's
    keeper). Nothing that exists is overwritten.
    """
    _check_name(region)
    place = Place(
        region,
        links=_address(listen, links),
        clients=_address(listen, clients),
        admin=Address("127.0.0.1", admin),
        links_advertised=_address(host, links),
        clients_advertised=_address(host, clients),
    )
    server = directory / "server"
    keys = new_region_keys(region, directory / "secrets", now_ms())
    write_node(place, keys, server, now_ms(), {"root": "root.bin", "storage_key": "secrets/storage.key"})
    (server / "secrets").mkdir(mode=0o700)
    StorageRing.generate(server / "secrets" / "storage.key")
    entry = region_entry(place, keys)
    write_public(directory / f"{region}.region", encode(entry))
    click.echo(f"Made {directory}. Send {directory / f'{region}.region'} to the root's keeper.")
    click.echo(f"Its fingerprint, to be compared over the phone: {fingerprint(entry)}")


@init.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--federation", default="posthouse", show_default=True, help="A name for the federation (at the start).")
@_dir_option
def root(files: tuple[Path, ...], federation: str, directory: Path) -> None:
    """Sign a root document over the regions in FILES (REGION.region).

    The first time this makes the root's key, DIR/secrets/root.key; whoever has it decides who belongs to the
    federation. Later, with the same DIR, the regions in FILES join the others, or replace those of the same name, in
    the next version of the root.
    """
    entries = [_load_region(path) for path in files]
    path = directory / "root.bin"
    prev = _load_root(path) if path.exists() else None
    if prev is None:
        key = SigningKey.generate()
        write_secret(directory / "secrets" / "root.key", bytes(key).hex().encode() + b"\n")
    else:
        key = load_signing_key(directory / "secrets" / "root.key")
    merged = {entry.name: entry for entry in (*(prev.payload.regions if prev else ()), *entries)}
    signed = new_root(federation, list(merged.values()), key, now_ms(), prev)
    verified = verify_root(signed, now_ms(), prev=prev)
    write_public(directory / f"root.v{verified.payload.version}.bin", signed)
    _replace(path, signed)
    click.echo(f"Signed {path}, version {verified.payload.version}. Send it to every operator.")
    click.echo(f"digest  {verified.digest.hex()}")
    for entry in verified.payload.regions:
        click.echo(f"{entry.name}  fingerprint {fingerprint(entry)}")


@init.command()
@click.argument("source", metavar="ROOT", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_dir_option
def join(source: Path, directory: Path) -> None:
    """Take a signed ROOT document into the region in DIR.

    Checks its signatures, that it follows the one that is there (versions are taken one by one; the root's keeper has
    each as root.vN.bin), and that it has this region exactly as `init region` made it. Then it puts it into DIR and the
    users' stores there, and into DIR/server for the node, and checks the node's whole config.
    """
    prev = _load_root(directory / "root.bin") if (directory / "root.bin").exists() else None
    new = _load_root(source, prev)
    regions = sorted(directory.glob("*.region"))
    if not regions:
        raise OperatorError(f"{directory} holds no region", "Give the --dir of `posthouse init region`")
    for path in regions:
        own = _load_region(path)
        if own not in new.payload.regions:
            what = f"{source} does not have the region {own.name} as it was made here ({fingerprint(own)})"
            raise OperatorError(what, f"Send {path} to the root's keeper again, and compare fingerprints")
    for target in (directory / "root.bin", directory / "server" / "root.bin"):
        _replace(target, new.signed)
    home = Home(directory)
    for name in home.names():
        update_root(home.store(name), new.signed)
    load_config(directory / "server" / "node.toml")
    click.echo(f"Joined: root version {new.payload.version} with {', '.join(r.name for r in new.payload.regions)}.")
    click.echo(f"Copy {directory / 'server'} to the server and run: posthouse node run server/node.toml")


def _replace(path: Path, data: bytes) -> None:
    """A file that at any moment is the old or the new one."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    write_public(fresh, data)
    fresh.replace(path)


def _check_name(region: str) -> None:
    try:
        msgspec.convert(region, Name)
    except msgspec.ValidationError:
        remedy = "Use a–z, 0–9, . and -, at most 64, starting with a letter or digit"
        raise OperatorError(f"{region!r} cannot be a region's name", remedy) from None


def _address(host: str, port: int) -> Address:
    if not _HOST.fullmatch(host):
        raise OperatorError(f"{host!r} is no host", "Give a name or an address, IPv6 in brackets, without a port")
    return Address.parse(f"{host}:{port}")


def _load_region(path: Path) -> RootRegion:
    try:
        return _read_region(path.read_bytes())
    except ProtocolError as error:
        raise OperatorError(f"{path} is no region file: {error.text}", "Ask its operator to send it again") from None


def _load_root(path: Path, prev: Root | None = None) -> Root:
    if prev is not None and path.read_bytes() == prev.signed:
        return prev
    return read_root(path, now_ms(), prev)
