"""`posthouse init statement`: what a region says of itself, signed for another year, with another policy if wanted."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from cluster.cli.region import own_region, region_option, signing_key_of, write_region
from cluster.federation.keys import new_signer
from cluster.federation.words import region_words
from cluster.provision import write_signer
from cluster.registrar.replacing import read_replacement, replaced
from relay.core.trust import Policy
from relay.errors import OperatorError

_REGIONS = "Names with commas between them; `none`, or `all`."


@click.command()
@click.option("--send-to", metavar="REGIONS", help=f"Regions that mail may go to. {_REGIONS}")
@click.option("--receive-from", metavar="REGIONS", help=f"Regions that mail may come from. {_REGIONS}")
@click.option("--hold", type=click.Choice(["allow", "deny"]), help="Whether mail bound abroad may wait on disks here.")
@click.option("--retention-days", type=click.IntRange(0, 30), help="How long mail rests here at most; 0: as it says.")
@click.option("--quorum", type=click.IntRange(0, 256), help="How many witnesses the region's log needs.")
@click.option("--log-key", metavar="VKEY", help="The key of the region's log (a C2SP vkey).")
@click.option("--witness-key", metavar="VKEY", help="The key by which it witnesses others' logs (a C2SP vkey).")
@click.option("--registrar-url", metavar="URL", help="Where its registrar is reached.")
@click.option(
    "--registrar-key", "replacement", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another key of its registrar: what `posthouse registrar replace-key` wrote.",
)
@click.option("--new-key", is_flag=True, help="Make another key to sign with: the keepers have to delegate to it.")
@region_option
def statement(
    send_to: str | None, receive_from: str | None, hold: str | None, retention_days: int | None, quorum: int | None,
    log_key: str | None, witness_key: str | None, registrar_url: str | None,
    replacement: Path | None, new_key: bool, directory: Path,
) -> None:  # fmt: skip
    """Sign what the region in DIR says of itself for another year; change its policy, or the keys of its log.

    What is not given stays as it is. The file DIR/REGION.region goes to the federation's keepers, who publish it
    (`posthouse federation add-region`); a year after it was signed last nobody believes the region any more.

    With --new-key, DIR/secrets/REGION.region.pem has to be moved away (or lost) first; compare the new fingerprint
    with the keepers, who have to sign that this key speaks for the region.
    """
    path, entry = own_region(directory)
    policy: dict[str, object] = _given(hold=hold, quorum=quorum)
    if send_to is not None:
        policy["send_to"] = _names(send_to)
    if receive_from is not None:
        policy["receive_from"] = _names(receive_from)
    if retention_days is not None:
        policy["retention_days"] = retention_days or None
    keys = _given(log_key=log_key, witness_key=witness_key, registrar_url=registrar_url)
    changed = msgspec.structs.replace(entry, policy=_policy(entry.policy, policy), **keys)
    if replacement is not None:
        changed = replaced(changed, read_replacement(replacement))
    if new_key:
        write_signer(signing_key_of(directory, entry.name), new_signer())
    write_region(path, changed, f"{entry.name} is signed for another year", new_keys=new_key)
    for line in region_words(changed):
        click.echo(line)


def _given(**options: object) -> dict[str, object]:
    return {key: value for key, value in options.items() if value is not None}


def _names(text: str) -> tuple[str, ...] | None:
    """None: all regions."""
    if text == "all":
        return None
    return () if text == "none" else tuple(name.strip() for name in text.split(","))


def _policy(before: Policy, change: dict[str, object]) -> Policy:
    policy = msgspec.structs.replace(before, **change)
    try:
        return msgspec.convert(msgspec.to_builtins(policy), Policy)
    except msgspec.ValidationError as error:
        raise OperatorError(f"this cannot be a policy: {error}", "Names of regions are a–z, 0–9, . and -") from None
