"""`posthouse registrar …`: run a region's registrar, and ask it."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import trio

from cluster.cli.exits import Exit, NoAnswer
from cluster.cli.moving import move, release
from cluster.cli.options import as_option, dir_option, now_ms
from cluster.cli.replacing import replace_key
from cluster.cli.region import authority_key_of, load_region
from cluster.config_keys import Address
from cluster.enrolment import read_records, split_release
from relay.core.tlog import Trust, VerifierKey
from cluster.local import devices as life
from cluster.local.home import Home, read_root
from cluster.local.people import introduce
from cluster.provision import write_public
from cluster.registrar.asking import Proof, Registrar, portions, signer
from cluster.registrar.audit import Audit, from_caller, from_directory
from cluster.registrar.config import load_config
from cluster.registrar.endpoints import caller
from cluster.registrar.make import make_registrar
from cluster.registrar.notebook import open_notebook
from relay.client import Card
from relay.core.codec import encode, pack
from relay.core.trust import RootRegion, same_home, trust_of
from relay.errors import OperatorError, Overloaded, PeerError, PosthouseError, TrustError
from relay.limits import MAX_REQUEST, MAX_STAPLE
from relay.journal.portal import open_portal
from relay.observe.logs import configure_logs

_PATH = click.Path(path_type=Path)
_SWITCH_S = 0.0005  # as a node's: SQLite's thread does not wait 5 ms for trio's
_at = click.option(
    "--at", "at", type=_PATH, required=True, envvar="POSTHOUSE_REGISTRAR", show_envvar=True,
    help="The registrar's directory, or its registrar.toml.",
)  # fmt: skip


@click.group()
def registrar() -> None:
    """The registrar of a region: checks, signs and logs home records.

    \b
    It is a process of its own, on a machine of its own, because it has what no
    relay may have: the registrar's key, which signs home records; the log's key,
    which signs checkpoints; the witness's key, which stands by other regions' logs.
    1. Where `posthouse init region` was run:
         posthouse registrar init norden --dir norden --host r.norden.example
       It prints how to have the root document name its keys and address.
    2. When the keepers have published that: posthouse init join root.bin
    3. posthouse registrar run norden/registrar-norden
    """


@registrar.command()
@click.argument("region")
@click.option("--host", default="", help="Name or address under which other regions reach it.  [default: not at all]")
@click.option("--port", default=9301, show_default=True, type=click.IntRange(1, 65535), help="Port of its outer face.")
@click.option("--name", help="What the names of its log and witness begin with.  [default: HOST/REGION]")
@click.option("--witnesses", type=click.IntRange(0, 256), help="Cosignatures that its log needs, if no root says.")
@click.option("--dir", "directory", type=_PATH, required=True, help="Where the region's secrets/ and root.bin are.")
def init(region: str, host: str, port: int, name: str | None, witnesses: int | None, directory: Path) -> None:
    """Make the registrar of REGION: DIR/registrar-REGION/ with its config, its log's and witness's keys, a certificate.

    The registrar's own key is the one in DIR/secrets that `posthouse init region` or `posthouse up` made. Prints how to
    have the root name its keys and address, and what the other regions' registrar.toml needs as long as it does not.
    Nothing that exists is overwritten.
    """
    authority, target = None, directory / f"registrar-{region}"
    if host:
        entry = _entry(directory, region)
        authority = entry.authority, authority_key_of(directory, entry)
    peer = make_registrar(
        target, region, authority, Address(host or "127.0.0.1", port),
        name or f"{host or 'posthouse'}/{region}", port=port, witnesses=witnesses, now_ms=now_ms(),
    )  # fmt: skip
    click.echo(f"Made {target}. Have the root document name its keys and address, and say how many witnesses count:")
    url = f" --registrar-url {peer.url}" if host else ""
    keys = f"--log-key {peer.log} --witness-key {peer.witness}{url}"
    click.echo(f"  posthouse init statement --dir {shlex.quote(str(directory))} {keys} --quorum N")
    click.echo("As long as it does not, every other region's registrar.toml needs:\n\n[[peers]]")
    for key, value in (("region", region), ("log_key", peer.log), ("witness_key", peer.witness), ("url", peer.url)):
        click.echo(f'{key} = "{value}"')


def _entry(directory: Path, region: str) -> RootRegion:
    path = directory / f"{region}.region"
    if path.exists():
        return load_region(path)
    return read_root(directory / "root.bin", now_ms()).region(region)


@registrar.command()
@click.argument("path", metavar="DIR|CONFIG", type=_PATH)
def run(path: Path) -> None:
    """Run the registrar in DIR, in the foreground, until SIGTERM or Ctrl-C.

    Logs go to stderr, one JSON object a line. It signs nothing where its registry is an older copy than the mark beside
    it, or than what another region's registrar has its signature under: that would be a fork of the log.
    """
    config = load_config(path, now_ms())
    configure_logs(config.log_level, region=config.region, node="registrar")
    sys.setswitchinterval(_SWITCH_S)
    from cluster.registrar.run import run_registrar

    async def until_stopped() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_registrar, config)
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    nursery.cancel_scope.cancel()
                    return

    trio.run(until_stopped)


@registrar.command()
@click.argument("requests", metavar="REQUEST…", type=_PATH, nargs=-1, required=True)
@click.option(
    "--after", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The records so far, of a user who moves here from another region. For one REQUEST.",
)  # fmt: skip
@click.option("--out", type=_PATH, help="Where to write, of one REQUEST.  [default: REQUEST.records, REQUEST.staple]")
@_at
def enrol(requests: tuple[Path, ...], after: Path | None, out: Path | None, at: Path) -> None:
    """Have the running registrar sign and log the home record that each REQUEST asks for.

    A REQUEST is the msgpack array [payload, signature by the user key] of docs/PROTOCOL.md, section 5: of a new user,
    or of the next version of one (a device more or less, another user key, another year); or what the region that a
    user leaves has made of it (`posthouse registrar release`, `posthouse user release`): then give --after. Writes the
    user's signed records as AUTH takes them, each with its staple: the proof, by the other regions' cosignatures, that
    it is in the region's log; and once more, by itself, the staple of the record that was asked for. Prints the address
    card. The same request again gives the same record.

    Many files are logged many at a time. One that is refused, too large or cannot be read is named, with what to do; it
    stops none of the others, and the exit status is 1. Where the registrar stops answering (4), what it answered before
    is written, and the rest is named: run the same command again.
    """
    if (out is not None or after is not None) and len(requests) > 1:
        raise click.UsageError("--out and --after are for one REQUEST")
    registrar = Registrar.of(load_config(at, now_ms()))
    if len(requests) == 1:
        before = read_records(after.read_bytes()) if after is not None else ()
        _write(out or requests[0], *trio.run(registrar.sign, _request_in(requests[0]), before, now_ms()))
        return
    if refused := trio.run(_enrol_all, registrar, requests):
        click.echo(f"{refused} of {len(requests)} requests were not enrolled; the others are", err=True)
        click.get_current_context().exit(Exit.FAILED)


def _request_in(place: Path) -> bytes:
    """The request in a file, or the released one with its staple. Raises OperatorError."""
    most = MAX_REQUEST + MAX_STAPLE
    try:
        with place.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise OperatorError(f"{place}: {error.strerror}", "Name files with one request each") from None
    if len(split_release(data)[0]) > MAX_REQUEST:
        what = f"{place}: {place.stat().st_size} bytes; a request has at most {MAX_REQUEST}"
        raise OperatorError(what, "Is it a request? docs/PROTOCOL.md, section 5, says what is in one")
    return data


def _same(some: Sequence[bytes], others: Sequence[bytes]) -> bool:
    return len(some) == len(others) and all(map(same_home, some, others))


async def _enrol_all(registrar: Registrar, places: Sequence[Path]) -> int:
    """Enrol what is in these files, and write what is answered, as it comes: how many were refused. Raises NoAnswer
    where the registrar stops answering."""
    asked, refused = list[tuple[Path, bytes]](), 0
    for place in places:
        try:
            asked.append((place, split_release(_request_in(place))[0]))
        except OperatorError as error:
            refused += _refused(place, error)
    left = [str(place) for place, _ in asked]
    try:
        for some in portions([request for _, request in asked]):
            for answer in await registrar.enrol_many(some):
                place = Path(left[0])
                try:
                    if isinstance(answer, PosthouseError):
                        raise answer
                    _write(place, *await registrar.proven(answer, now_ms()))
                except (TrustError, OperatorError, Overloaded) as error:
                    refused += _refused(place, error)
                del left[0]
    except PeerError as error:
        some_left = ", ".join(left[:5]) + (", …" if len(left) > 5 else "")
        what = f"{error.text}: {len(left)} of {len(places)} requests have no answer: {some_left}"
        remedy = "Run the same command again when it answers: what is logged already gets the same record"
        raise NoAnswer(what, remedy) from None
    return refused


def _refused(place: Path, error: PosthouseError) -> int:
    text = error.text if error.text.startswith(str(place)) else f"{place}: {type(error).__name__}: {error.text}"
    click.echo(f"{text}. {error.remedy}", err=True)
    return 1


def _write(target: Path, proof: Proof, staple: bytes) -> None:
    """What was written before, of the same records, stays as it is."""
    assert proof.record is not None
    file, other = (target.with_name(f"{target.name}.{end}") for end in ("records", "staple"))
    if not (file.exists() and _same(read_records(file.read_bytes()), proof.records)):
        write_public(file, pack([*proof.records]))
    if not other.exists():
        write_public(other, staple)
    click.echo(f"Logged version {proof.record.version} for {proof.record.cell}: {target}.records, .staple", err=True)
    click.echo(str(Card(proof.record.payload.region, proof.record.user)))


@registrar.command()
@click.argument("device", metavar="DEVICE")
@as_option
@_at
@dir_option
def revoke(device: str, name: str, at: Path, directory: Path) -> None:
    """Revoke a device of a user whose store is in --dir: log a home record without it.

    As `posthouse user revoke`, and signed by the running registrar instead of a key in --dir/secrets. --as is another
    device of the user: the record is signed with the user's key, which is in its store.
    """
    home = Home(directory)
    _tell(home, life.revoke(home, device, name, now_ms(), signer(at, now_ms)))


@registrar.command()
@as_option
@_at
@dir_option
def rotate(name: str, at: Path, directory: Path) -> None:
    """Give a user whose store is in --dir another user key: log a home record that names it, signed with the old one.

    As `posthouse user rotate`, and signed by the running registrar. For another key of the registrar itself:
    `posthouse registrar replace-key`. A new log key is a new log.
    """
    home = Home(directory)
    _tell(home, life.rotate_user(home, name, now_ms(), signer(at, now_ms)))


def _tell(home: Home, changed: life.Changed) -> None:
    record = changed.record
    click.echo(f"Logged version {record.version}: {len(record.devices)} device(s)")
    if not trio.run(introduce, home, changed.by):
        click.echo(f"No node of {record.payload.region} answers now; it holds once {changed.by} connects.", err=True)


@registrar.command()
@click.argument("user", metavar="CARD|ID")
@click.option("--out", type=_PATH, metavar="FILE", help="Write the records with their proof here.")
@_at
def proof(user: str, out: Path | None, at: Path) -> None:
    """Ask the running registrar for a user's records, and verify the proof that they are all.

    ID is a user id in hex. The proof is that of the newest epoch of the log, which the other regions cosigned at most
    10 minutes ago: the newest record is this one, or there is no such user.
    """
    config = load_config(at, now_ms())
    found = trio.run(Registrar.of(config).prove, _user(user), now_ms())
    who = ", ".join(sorted(found.times)) or "nobody"
    if found.record is None:
        click.echo("There is no such user.")
    else:
        devices = len(found.record.devices)
        click.echo(f"version {found.record.version}, at home in {found.record.cell}, {devices} device(s)")
    click.echo(f"by epoch {found.epoch.number} of {config.log.name}, {found.epoch.users} user(s); cosigned by {who}")
    if out is not None:
        write_public(out, encode(found.standing))


def _user(text: str) -> bytes:
    if text.startswith("posthouse:"):
        return Card.parse(text).user
    try:
        user = bytes.fromhex(text)
    except ValueError:
        user = b""
    if len(user) != 32:
        raise OperatorError(f"{text[:80]!r} is neither an address card nor a user id", "An id has 64 hex digits")
    return user




@registrar.command()
@click.argument("log", metavar="URL|DIR")
@click.option("--region", required=True, help="The region whose log it is.")
@click.option("--root", "root_path", type=_PATH, required=True, help="The signed root document.")
@click.option("--log-key", metavar="VKEY", help="The log's key.  [default: it and what follows as the root says]")
@click.option("--witness-key", "witness_keys", multiple=True, metavar="VKEY", help="A witness's key; once for each.")
@click.option("--witnesses", default=0, help="How many of them have to stand by a checkpoint.")
@click.option("--dir", "directory", type=_PATH, required=True, help="Where the audit keeps what it saw.")
def audit(
    log: str, region: str, root_path: Path, log_key: str | None, witness_keys: tuple[str, ...], witnesses: int,
    directory: Path,
) -> None:  # fmt: skip
    """Replay the log of a region to its map, and check every checkpoint that was ever seen.

    URL is the inner face of its registrar (unix:PATH, http://127.0.0.1:PORT), which serves the entries; DIR a copy of
    them as files (checkpoint, tile/…). Looks at every entry: both signatures, the chain, the root of every epoch; and
    at every tile. Keeps each checkpoint in --dir before it looks further, and holds all of them against the one
    history; the next audit with the same --dir goes on from there.

    Exit status 0 says that all of it holds; 5 that something does not; 3 and 4 that it could not be looked at.
    """
    root = read_root(root_path, now_ms())
    trust = trust_of(root, region) if log_key is None else Trust(
        VerifierKey.parse(log_key), tuple(map(VerifierKey.parse, witness_keys)), witnesses
    )  # fmt: skip
    is_url = log.startswith(("unix:", "http:", "https:"))
    if not is_url and not Path(log).is_dir():
        raise OperatorError(f"{log} is neither a URL nor a directory", "Name the registrar's inner face, or a copy")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def look() -> Audit:
        async with open_portal() as portal, open_notebook(directory, portal, str(trust.log)) as notebook:
            get = from_caller(caller(log, log, root, region)) if is_url else from_directory(Path(log))
            one = Audit(region, root, trust, get, notebook)
            try:
                await one.run()
            except PeerError as error:
                raise NoAnswer(error.text, error.remedy or "Is the registrar running?") from None
            seen = len(await notebook.checkpoints())
            far = notebook.replayed
            what = f"{far.size} entries ({one.looked_at} new), {far.users} users, {far.epoch + 1} epochs"
            click.echo(f"{trust.log.name}: {what}, {seen} checkpoints seen")
            return one

    done = trio.run(look)
    for finding in done.findings:
        click.echo(f"FOUND  {finding}")
    click.echo("all of it holds" if not done.findings else f"{len(done.findings)} finding(s)")
    if done.findings:
        click.get_current_context().exit(Exit.UNTRUSTED)


for command in (move, release, replace_key):
    registrar.add_command(command)
