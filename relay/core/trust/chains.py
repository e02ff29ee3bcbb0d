"""Chains of home records: of one user, from version 1 or what is known on, to the newest."""

from __future__ import annotations

from collections.abc import Sequence

from relay.core.trust.earlier import Spot, check_spot
from relay.core.trust.homes import BY_REGISTRAR, HomeRecord, key_before, read_home, verify_home
from relay.core.trust.logs import check_logged
from relay.core.trust.root import Root
from relay.errors import BrokenChain, NotValidNow, NotYet, Rollback, TrustError
from relay.limits import HOME_CLOCK_AHEAD, MAX_CHAIN


def verify_chain(
    chain: Sequence[bytes], root: Root, now_ms: int, user: bytes, known: HomeRecord | None = None
) -> HomeRecord:
    """Verify signed records, oldest first, that lead from `known` (or from version 1) to the newest one of `user`. One
    that is newer than `known` is in its region's log, by its staple: `check_stapled`.

    Raises TrustError and its kinds; Rollback where the result is older than `known`."""
    record = known
    for signed in chain[:MAX_CHAIN]:
        if known is not None and (again := read_home(signed)).version <= known.version:
            if again.version == known.version and again.digest != known.digest:  # what is signed, not how often
                raise BrokenChain("two different home records of one version: a fork")
            continue
        record = verify_home(signed, root, record)
    if record is None:
        raise TrustError("no home record")
    if record.user != user:
        raise BrokenChain("the home record is another user's")
    if known is not None and record.version < known.version:
        raise Rollback(f"home record version {record.version} after {known.version}")
    check_current(record, now_ms)
    if record is not known:
        check_stapled(record, root)
    return record


def check_stapled(record: HomeRecord, root: Root) -> None:
    """A verified record is in the log that the root names for its region, by the staple that it came with. That of the
    newest says it for all before it, which it names by their hashes. A region without a log is exempt.

    Raises NotLogged (no staple) and the other kinds of LogError: relay.core.trust.logs.check_logged; RetiredKey."""
    region = record.payload.region
    proven = check_logged(record.signed, root, region)
    check_endorsed(record, root, Spot(region, proven.index) if proven is not None else None)


def check_endorsed(record: HomeRecord, root: Root, spot: Spot | None) -> None:
    """A verified record, the newest of its chain, that is logged at `spot` (None: nowhere) was signed with the
    registrar's key of now, or before that came. Raises RetiredKey."""
    used = key_before(record, root)
    if used is not None:
        check_spot(used, spot, BY_REGISTRAR)


def verify_move(chain: Sequence[bytes], root: Root, known: HomeRecord | None = None) -> list[HomeRecord]:
    """Verify all records of a user, from version 1 on: the records. What `known` says must be among them, if they go as
    far. The newest may have run out: that it was signed is what counts for where mail goes. Whether it is logged is the
    caller's to ask (`check_stapled`).

    Raises TrustError and its kinds."""
    records: list[HomeRecord] = []
    for signed in chain:
        records.append(verify_home(signed, root, records[-1] if records else None))
    if not records:
        raise TrustError("no home record")
    if known is not None and known.version <= len(records) and records[known.version - 1].digest != known.digest:
        raise BrokenChain(f"two different home records of version {known.version}: a fork")
    return records


def check_current(record: HomeRecord, now_ms: int) -> None:
    """Raises NotYet before `not_before` (but for what the clock of whoever made it may be ahead), NotValidNow from
    `expires` on."""
    if now_ms + HOME_CLOCK_AHEAD < record.payload.not_before:
        ahead = (record.payload.not_before - now_ms) // 1000
        raise NotYet(f"home record version {record.version} is not valid for another {ahead} s", "Compare the clocks")
    if now_ms >= record.payload.expires:
        raise NotValidNow(f"home record version {record.version} has expired", "Ask the registrar for a newer one")
