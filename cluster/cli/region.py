"""The directory of `posthouse init region`: what several commands read from it and write to it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import click

from cluster.cli.directory import fingerprint
from cluster.provision import write_public
from relay.core.codec import Decoder, encode
from relay.core.trust import RootRegion
from relay.errors import OperatorError, ProtocolError
from relay.limits import KIB

_read_region: Decoder[RootRegion] = Decoder(RootRegion, "region file", 64 * KIB)
region_option = click.option(
    "--dir", "directory", type=click.Path(path_type=Path), required=True, help="Where to write."
)


def own_region(directory: Path) -> tuple[Path, RootRegion]:
    """The region file in DIR, and what is in it. Raises OperatorError."""
    paths = sorted(directory.glob("*.region"))
    if len(paths) != 1:
        raise OperatorError(f"{directory} holds {len(paths)} regions", "Give the --dir of `posthouse init region`")
    return paths[0], load_region(paths[0])


def load_region(path: Path) -> RootRegion:
    try:
        return _read_region(path.read_bytes())
    except ProtocolError as error:
        raise OperatorError(f"{path} is no region file: {error.text}", "Ask its operator to send it again") from None


def authority_key_of(directory: Path, entry: RootRegion) -> bytes:
    """The key (PEM) of the region's authority. Raises OperatorError where it is not kept here."""
    path = directory / "secrets" / f"{entry.name}.authority.pem"
    try:
        return path.read_bytes()
    except OSError as error:
        remedy = "Run it where `posthouse init region` was run: it needs the key of the region's authority"
        raise OperatorError(f"{path}: {error.strerror}", remedy) from None


def write_region(path: Path, entry: RootRegion, what: str) -> None:
    """A changed region file, for the root's keeper; `what` says how it changed. Raises OperatorError."""
    replace_file(path, encode(entry))
    click.echo(f"{what} in {path}: send it to the root's keeper.")
    click.echo(f"Its fingerprint, to be compared over the phone: {fingerprint(entry)}")


def node_of(config: Path) -> str:
    """The name of the node that a config is for. Raises OperatorError."""
    try:
        return str(tomllib.loads(config.read_text("utf-8"))["node"]["name"])
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError):
        remedy = "Mend it; `posthouse config check` says more. Nothing was changed"
        raise OperatorError(f"{config} does not say which node it is", remedy) from None


def replace_file(path: Path, data: bytes) -> None:
    """A file that at any moment is the old or the new one. Raises OperatorError."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    write_public(fresh, data)
    fresh.replace(path)
