"""`posthouse federation …`: what the keepers of a federation do. docs/CEREMONY.md leads through it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api import metadata as tuf

from cluster.cli.options import now_ms
from cluster.cli.region import replace_file
from cluster.federation.keys import key_words, load_public, load_signer, named, new_signer
from cluster.federation.making import (
    Holders, Lifetimes, delegations_of, draft_root, draft_targets, holders_of, publish as publish_staged,
)  # fmt: skip
from cluster.federation.regionfile import fingerprint, load_region_file
from cluster.federation.repository import repository_files
from cluster.federation.table import (
    BEFORE, ROOT, TARGETS, Table, check_next, check_quorums, published_before, read_draft,
)  # fmt: skip
from cluster.federation.words import day, metadata_words, region_words, signed_region_words
from cluster.provision import write_public, write_signer
from relay.core.codec import encode
from relay.core.trust import verify_root
from relay.core.trust.metadata import ends_ms
from relay.errors import OperatorError
from relay.limits import DAY

_table_option = click.option(
    "--dir", "directory", type=click.Path(path_type=Path), required=True, help="The keepers' directory."
)
_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_days = click.IntRange(1, 3650)
_days_option = click.option("--days", default=365, show_default=True, type=_days, help="How long it holds.")
_count = click.IntRange(1, 64)


@click.group()
def federation() -> None:
    """Keep a federation's root of trust: who may admit regions, which regions there are, and that it is news.

    \b
    Four roles sign, in the formats of The Update Framework (TUF):
      root      a threshold of root keys, offline. They say whose keys these are
      keepers   a threshold of keepers' keys, offline. They admit regions, and
                give each to the keys of its operator
      region    each region's operator signs what the region says of itself
      online    one key, on the machine that publishes: that this is news
    What is to be signed lies in DIR/staged. Take it to each key, or each key
    to it; `publish` makes DIR/root.bin of it, which everybody gets.
    """


@federation.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
def key(path: Path) -> None:
    """Make a key of your own: FILE (which stays with you) and FILE with .pub at its end (for the others).

    Do it on the machine where the key is to stay. The name of the file is how others will see the key called.
    """
    if path.suffix == ".pub":
        raise OperatorError(f"{path} would be the public half", "Name the private one, for instance anna-root.pem")
    signer = new_signer()
    write_signer(path, signer)
    click.echo(f"Made {path}. Send {path.with_suffix('.pub')} to whoever holds the ceremony.")
    click.echo(f"It begins with {key_words(signer.public_key)}: read that to them over the phone.")


@federation.command()
@click.option("--name", default="posthouse", show_default=True, help="What the federation is called.")
@click.option("--root-keys", type=_count, help="Make so many root keys in DIR/secrets.  [default: 3]")
@click.option("--root-key", "root_pubs", multiple=True, type=_file, help="A root key's .pub; once for each.")
@click.option("--threshold", type=_count, help="How many root keys must sign.  [default: more than half]")
@click.option("--keeper-keys", type=_count, help="Make so many keepers' keys.  [default: as many as root keys]")
@click.option("--keeper-key", "keeper_pubs", multiple=True, type=_file, help="A keeper's .pub; once for each.")
@click.option("--keeper-threshold", type=_count, help="How many keepers must sign.  [default: more than half]")
@click.option("--online-key", "online_pub", type=_file, help="The .pub of the key that publishes.  [default: make one]")
@_days_option
@_table_option
def init(
    name: str, root_keys: int | None, root_pubs: tuple[Path, ...], threshold: int | None, keeper_keys: int | None,
    keeper_pubs: tuple[Path, ...], keeper_threshold: int | None, online_pub: Path | None, days: int, directory: Path,
) -> None:  # fmt: skip
    """Begin a federation: version 1 of its root, and a list of regions that is still empty.

    Either with keys that each holder made (`posthouse federation key`), given as --root-key and --keeper-key; or with
    keys that are made here, each in a file of its own in DIR/secrets, and sign at once. Take those to their holders
    then, and delete them here.
    """
    if (directory / "root.bin").exists() or (directory / "staged" / ROOT).exists():
        raise OperatorError(f"{directory} holds a federation already", "Change it with `rotate` and `add-region`")
    if (root_pubs and root_keys) or (keeper_pubs and keeper_keys):
        raise OperatorError("keys that are to be made and keys that are there", "Give numbers, or .pub files")
    secrets = directory / "secrets"
    made = _named("root", root_keys or 3) if not root_pubs else {}
    made_keepers = _named("keeper", keeper_keys or root_keys or 3) if not keeper_pubs else {}
    made_online = {} if online_pub else _named("online", 1)
    roots = _holders(root_pubs, made, threshold)
    keepers = _holders(keeper_pubs, made_keepers, keeper_threshold)
    online = _holders([online_pub] if online_pub else [], made_online, 1)
    _check_apart(roots, keepers, online)
    until = now_ms() + days * DAY
    root, targets = draft_root(name, 1, roots, keepers, online, until), draft_targets(1, {}, until)
    for stem, signer in {**made, **made_keepers, **made_online}.items():
        write_signer(secrets / f"{stem}.pem", signer)
    for signer in made.values():
        root.sign(signer, append=True)
    _stage(directory, ROOT, root)
    _stage(directory, TARGETS, targets)
    for line in metadata_words(root, None):
        click.echo(line)
    if made or made_keepers:
        click.echo(f"Made keys in {secrets}: take each to its holder, and delete it here.")
    _say_next(directory)


@federation.command("add-region")
@click.argument("files", metavar="FILE.region...", nargs=-1, required=True, type=_file)
@_days_option
@_table_option
def add_region(files: tuple[Path, ...], days: int, directory: Path) -> None:
    """Take in what a region's operator has sent: a new region, or what a known one says anew.

    A new region, or one with other keys, needs the keepers' signatures on DIR/staged/targets.json. What a known region
    says anew it has signed itself: `publish` brings it to everybody.
    """
    for path in files:
        table, signed = Table(directory), load_region_file(path)
        if signed.ends_ms <= now_ms():
            remedy = "Its operator signs it again: posthouse init statement"
            raise OperatorError(f"{path}: this statement ended on {day(signed.ends_ms)}", remedy)
        delegations = table.delegations_with(signed)
        for line in signed_region_words(signed):
            click.echo(line)
        if delegations is not None:
            _stage(directory, TARGETS, draft_targets(table.next_targets, delegations, now_ms() + days * DAY))
            click.echo(f"Compare {fingerprint(signed.file.delegation)} with {signed.region.name}'s operator by phone.")
        _write(table.staged_dir / f"{signed.region.name}.region", encode(signed.file))
    _say_next(directory)


@federation.command("remove-region")
@click.argument("name")
@_days_option
@_table_option
def remove_region(name: str, days: int, directory: Path) -> None:
    """Take the region NAME out of the federation. The keepers sign that; nodes elsewhere believe it no more once they
    have the next root document."""
    table = Table(directory)
    delegations = delegations_of(table.newest_targets)
    if name not in delegations:
        remedy = f"It has: {', '.join(delegations) or 'none yet'}"
        raise OperatorError(f"the federation has no region {name!r}", remedy)
    del delegations[name]
    _stage(directory, TARGETS, draft_targets(table.next_targets, delegations, now_ms() + days * DAY))
    (table.staged_dir / f"{name}.region").unlink(missing_ok=True)
    _say_next(directory)


@federation.command()
@click.option("--root-key", "root_pubs", multiple=True, type=_file, help="All root keys from now on; once for each.")
@click.option("--threshold", type=_count, help="How many root keys must sign.")
@click.option("--keeper-key", "keeper_pubs", multiple=True, type=_file, help="All keepers' keys from now on.")
@click.option("--keeper-threshold", type=_count, help="How many keepers must sign.")
@click.option("--online-key", "online_pub", type=_file, help="The key that publishes from now on.")
@click.option("--targets", is_flag=True, help="Have the keepers sign the list of regions for longer, too.")
@_days_option
@_table_option
def rotate(
    root_pubs: tuple[Path, ...], threshold: int | None, keeper_pubs: tuple[Path, ...], keeper_threshold: int | None,
    online_pub: Path | None, targets: bool, days: int, directory: Path,
) -> None:  # fmt: skip
    """Stage the next version of the root: other keys, another threshold, or only another --days.

    A threshold of the keys so far and a threshold of the new ones must sign it. With other keepers they sign the list
    of regions anew, too. Another online key makes nodes forget the versions that the old one has signed: so a
    federation recovers from a stolen one.
    """
    table, until = Table(directory), now_ms() + days * DAY
    before = table.published.root if table.published else None
    if before is None:
        raise OperatorError(f"{directory}: version 1 is not published yet", "Sign and publish it first")
    roots, keepers, online = (holders_of(before, role) for role in ("root", "targets", "timestamp"))
    roots = _changed(roots, root_pubs, threshold)
    keepers = _changed(keepers, keeper_pubs, keeper_threshold)
    online = _changed(online, [online_pub] if online_pub else [], None)
    _check_apart(roots, keepers, online)
    name = str(before.unrecognized_fields["federation"])
    root = draft_root(name, before.version + 1, roots, keepers, online, until)
    _stage(directory, ROOT, root)
    if targets or keeper_pubs or keeper_threshold or table.targets is not None:
        _stage(directory, TARGETS, draft_targets(table.next_targets, delegations_of(table.newest_targets), until))
    for line in metadata_words(root, table.published.roots[-1] if table.published else None):
        click.echo(line)
    _say_next(directory)


@federation.command()
@click.argument("path", metavar="METADATA", type=_file)
@click.option("--key", "key_path", required=True, type=_file, help="Your private key.")
@click.option("--trusted", type=_file, help="Your own copy of the root document.  [needed but for version 1]")
@click.option("--yes", is_flag=True, help="Do not ask.")
def sign(path: Path, key_path: Path, trusted: Path | None, yes: bool) -> None:
    """Add your signature to METADATA: a staged root.json or targets.json, which is changed in place.

    Shows what it says, in words, before it asks. Needs no network: copy the whole directory `staged` to the machine
    where the key is, and the signed file back (or to the next holder, who adds another signature).

    What it changes is told by what you trust: the root.bin that you brought home the last time, or an older one. What
    is published since lies in `staged`, and has to follow yours; else nothing is shown or signed.
    """
    signer = load_signer(key_path)
    folder = path.parent
    published = published_before(folder, trusted.read_bytes() if trusted else None)
    roots = [read_draft(folder / ROOT, tuf.Root), published.roots[-1] if published else None]
    metadata: tuf.Metadata[Any] | None
    before: tuf.Metadata[Any] | None
    if path.name == ROOT:
        metadata, before = roots[0], roots[1]
        holders = [holders_of(root.signed, "root") for root in roots if root]
    elif path.name == TARGETS:
        metadata, before = read_draft(path, tuf.Targets), published.targets if published else None
        holders = [holders_of(root.signed, "targets") for root in roots if root][:1]
    else:
        raise OperatorError(f"{path} is nothing that is signed here", f"Give staged/{ROOT} or staged/{TARGETS}")
    if metadata is not None:
        check_next(metadata, before, path)
    if metadata is None or not holders:
        raise OperatorError(f"{folder} holds no root role", "Copy the whole directory `staged`, not only one file")
    keys = {key.keyid: key for holder in holders for key in holder.keys}
    own = keys.get(signer.public_key.keyid)
    if own is None:
        may = ", ".join(key_words(key) for key in keys.values())
        raise OperatorError(f"{key_path} may not sign {path}", f"Those that may: {may}")
    for line in metadata_words(metadata, before):
        click.echo(line)
    if path.name == TARGETS:
        for region in sorted(folder.glob("*.region")):
            for line in signed_region_words(load_region_file(region)):
                click.echo(line)
    if ends_ms(metadata.signed) <= now_ms():
        what = f"{path} ended on {day(ends_ms(metadata.signed))}"
        raise OperatorError(what, "Set this machine's clock, or stage it again")
    if not yes:
        click.confirm(f"Sign this as {key_words(own)}?", abort=True)
    metadata.sign(signer, append=True)
    replace_file(path, metadata.to_bytes())
    click.echo(f"Signed {path} as {key_words(own)}.")


@federation.command()
@click.option("--key", "key_path", type=_file, help="The online key.  [default: DIR/secrets/online.pem]")
@click.option("--timestamp-days", default=14, show_default=True, type=_days, help="How long it is news.")
@click.option("--snapshot-days", default=60, show_default=True, type=_days, help="How long nodes go on without news.")
@_table_option
def publish(key_path: Path | None, timestamp_days: int, snapshot_days: int, directory: Path) -> None:
    """Make the next root document of what is staged and signed: DIR/root.bin, and DIR/repository for any TUF client.

    Refuses, with a list, while signatures are missing. With nothing staged it says again, with a new timestamp, what is
    published: do that at least once in --timestamp-days. What nobody renews is not taken in any more after
    --timestamp-days, and after --snapshot-days nodes that start do not use it either.
    """
    table, now = Table(directory), now_ms()
    if missing := list(table.missing()):
        remedy = "Sign with `posthouse federation sign`"
        raise OperatorError("\n  ".join(["not published: signatures are missing", *missing]), remedy)
    signer = load_signer(key_path or directory / "secrets" / "online.pem")
    may = holders_of(table.newest_root, "timestamp")
    if signer.public_key.keyid not in {one.keyid for one in may.keys}:
        words = ", ".join(key_words(one) for one in may.keys)
        raise OperatorError(f"{key_path or 'the online key'} may not publish", f"The root role names {words}")
    signed = publish_staged(
        table.published, table.staged, [signer], now, Lifetimes(snapshot_days * DAY, timestamp_days * DAY)
    )
    root = verify_root(signed, now, prev=table.view)  # with the eyes of everybody who gets it
    check_quorums(root.payload.regions)
    _write(table.bundle_path, signed)  # first: what anybody has seen is never said otherwise by a second try
    for path, data in repository_files(signed):
        target = directory / "repository" / path
        if not target.exists() or target.read_bytes() != data:
            _write(target, data)
    _clear(table, signed)
    click.echo(f"Published {table.bundle_path}, version {root.payload.version}. Send it to every operator.")
    click.echo(f"federation id  {root.federation_id.hex()}")
    for delegation in root.payload.delegations:
        click.echo(f"{delegation.name}  fingerprint {fingerprint(delegation)}")
    for region in root.payload.regions:
        for line in region_words(region):
            click.echo(line)
    for name in root.payload.lapsed:
        click.echo(f"{name}: its statement has EXPIRED; its operator runs `posthouse init statement`", err=True)
    click.echo(f"It is news until {day(root.payload.fresh_until)}: publish again before that.")


def _named(stem: str, count: int) -> dict[str, CryptoSigner]:
    """Fresh keys by name."""
    names = [stem] if stem == "online" else [f"{stem}-{number}" for number in range(1, count + 1)]
    return {name: new_signer() for name in names}


def _holders(pubs: Iterable[Path], made: dict[str, CryptoSigner], threshold: int | None) -> Holders:
    keys = [*map(load_public, pubs), *(named(signer.public_key, name) for name, signer in made.items())]
    return _checked(keys, threshold or len(keys) // 2 + 1)


def _changed(now: Holders, pubs: Sequence[Path], threshold: int | None) -> Holders:
    keys = [load_public(path) for path in pubs] or list(now.keys)
    return _checked(keys, threshold or min(now.threshold, len(keys)))


def _checked(keys: list[SSlibKey], threshold: int) -> Holders:
    if len({key.keyid for key in keys}) != len(keys):
        raise OperatorError("one key is given twice", "Give each holder's own: a key counts once in a threshold")
    if threshold > len(keys):
        raise OperatorError(f"a threshold of {threshold} with {len(keys)} keys", f"Take at most {len(keys)}")
    return Holders(tuple(keys), threshold)


def _check_apart(roots: Holders, keepers: Holders, online: Holders) -> None:
    """The online key lies where it can be stolen: it must not be one of the others."""
    offline = {key.keyid for holders in (roots, keepers) for key in holders.keys}
    if offline & {key.keyid for key in online.keys}:
        raise OperatorError("the online key is a root's or a keeper's, too", "Make one for publishing alone")


def _stage(directory: Path, name: str, metadata: tuf.Metadata[Any]) -> None:
    path = directory / "staged" / name
    if path.exists():
        click.echo(f"{path} is made anew: what was signed there has to be signed again.")
    _write(path, metadata.to_bytes())


def _write(path: Path, data: bytes) -> None:
    if path.exists():
        replace_file(path, data)
    else:
        write_public(path, data)


def _clear(table: Table, signed: bytes) -> None:
    """Nothing is staged any more, and whoever signs next sees what is published."""
    for path in (table.staged_dir / ROOT, table.staged_dir / TARGETS, *table.staged_dir.glob("*.region")):
        path.unlink(missing_ok=True)
    _write(table.staged_dir / BEFORE, signed)


def _say_next(directory: Path) -> None:
    missing = list(Table(directory).missing())
    for line in missing:
        click.echo(f"To sign: {line}")
    if not missing:
        click.echo("Nothing more to sign: posthouse federation publish")
