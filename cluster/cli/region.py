"""The directory of `posthouse init region`: what several commands read from it and write to it."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import click

from cluster.cli.options import now_ms
from cluster.federation.keys import load_signer
from cluster.federation.regionfile import SignedRegion, fingerprint, load_region_file, read_region_file, sign_region
from cluster.provision import write_public
from relay.core.trust import RootRegion
from relay.errors import OperatorError

region_option = click.option(
    "--dir", "directory", type=click.Path(path_type=Path), required=True, help="Where to write."
)


def own_region(directory: Path) -> tuple[Path, RootRegion]:
    """The region file in DIR, and what it says. Raises OperatorError."""
    paths = sorted(directory.glob("*.region"))
    if len(paths) != 1:
        raise OperatorError(f"{directory} holds {len(paths)} regions", "Give the --dir of `posthouse init region`")
    return paths[0], load_region(paths[0])


def load_region(path: Path) -> RootRegion:
    """Raises OperatorError."""
    return load_region_file(path).region


def authority_key_of(directory: Path, entry: RootRegion) -> bytes:
    """The key (PEM) of the region's authority. Raises OperatorError where it is not kept here."""
    path = directory / "secrets" / f"{entry.name}.authority.pem"
    try:
        return path.read_bytes()
    except OSError as error:
        remedy = "Run it where `posthouse init region` was run: it needs the key of the region's authority"
        raise OperatorError(f"{path}: {error.strerror}", remedy) from None


def signing_key_of(directory: Path, name: str) -> Path:
    """Where the key is kept that signs what the region says of itself."""
    return directory / "secrets" / f"{name}.region.pem"


def write_region(path: Path, entry: RootRegion, what: str, *, new_keys: bool = False) -> None:
    """A changed region file, signed anew, for the federation's keepers; `what` says how it changed. `new_keys`: it may
    be by another key than before. Raises OperatorError."""
    signer = load_signer(signing_key_of(path.parent, entry.name))
    signed = sign_region(entry, [signer], now_ms(), load_region_file(path), new_keys=new_keys)
    replace_file(path, signed)
    click.echo(f"{what} in {path}: send it to the federation's keepers.")
    tell_fingerprint(read_region_file(signed, str(path)))


def tell_fingerprint(signed: SignedRegion) -> None:
    """What the keepers will read out."""
    click.echo(f"Its fingerprint, to be compared over the phone: {fingerprint(signed.file.delegation)}")


def node_of(config: Path) -> str:
    """The name of the node that a config is for. Raises OperatorError."""
    try:
        return str(tomllib.loads(config.read_text("utf-8"))["node"]["name"])
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError):
        remedy = "Mend it; `posthouse config check` says more. Nothing was changed"
        raise OperatorError(f"{config} does not say which node it is", remedy) from None


def replace_file(path: Path, data: bytes) -> None:
    """A file that at any moment is the old or the new one, and on return the new one, also after a power cut: what was
    sent to others as version n must not be forgotten, and n be signed for something else. Raises OperatorError."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    write_public(fresh, data)
    fresh.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
