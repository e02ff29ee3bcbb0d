"""Requests become logged records with staples; batches, repeats, refusals, witnesses that are away."""

from __future__ import annotations

import pytest
import trio
from msgspec import structs
from msgspec.msgpack import decode
from nacl.signing import SigningKey

from cluster.core.homelog import (
    EpochEntry, Freshness, read_entry, verify_newest, verify_stapled_home, verify_unknown,
)  # fmt: skip
from relay.core.codec import pack
from relay.core.tlog import TooFewWitnesses, decode_bundle, parse_checkpoint, parse_note, verify_staple
from relay.core.trust import (
    HomeEntry, HomeRecord, home_entry, read_chain, read_home, release_home, same_home, split_home,
)  # fmt: skip
from relay.errors import (
    BadSignature, BrokenChain, OperatorError, Overloaded, ReturnedDevice, RolledBack, TrustError, VersionTaken,
)  # fmt: skip
from tests.cluster.registrar.site import (
    NOW, ROOT, Region, World, ask, device, first, following, log_key, registrar_key, request,
    user_key,
)  # fmt: skip
from tests.patience import PATIENCE_S

FRESH = Freshness(NOW // 1000, 60)


async def test_a_user_from_the_first_record_to_another_key(world: World) -> None:
    trust, noted = world.trust("norden", 2), list[str]()
    async with world.region() as region:
        region.log.on_logged = lambda head, actions: noted.extend(action.split()[0] for action in actions)
        answer = await region.log.enrol(request(1))
        record, proven = verify_stapled_home(answer.signed, answer.staple, ROOT, trust, None, NOW)
        assert proven.index == 1 and proven.checkpoint.size == 3 and len(proven.times) == 2
        phone, laptop = record.devices[0], device(b"l" * 32, 2)
        # a second device; the first one is revoked; the user key is rotated; the old key signs nothing any more
        other = bytes(user_key(2).verify_key)
        for more, signer in (
            ({"devices": (phone, laptop)}, user_key(1)),
            ({"devices": (laptop,)}, user_key(1)),
            ({"user_key": other}, user_key(1)),
            ({}, user_key(2)),
        ):
            answer = await region.log.enrol(ask(following(record, **more), signer))
            record, _ = verify_stapled_home(answer.signed, answer.staple, ROOT, trust, record, NOW)
        assert record.version == 5 and [one.id for one in record.devices] == [laptop.id]
        assert noted == ["enrol", "add", "revoke", "rotate-user", "renew"]
        with pytest.raises(BadSignature):
            await region.log.enrol(ask(following(record), user_key(1)))
        standing = await region.log.standing(record.user)
        assert [read_home(signed).version for signed in standing.records] == [1, 2, 3, 4, 5]
        assert verify_newest(record, standing.evidence, trust, FRESH).users == 1
        absent = await region.log.standing(b"u" * 32)
        assert absent.records == () and verify_unknown(b"u" * 32, absent.evidence, trust, FRESH)


async def test_what_waits_is_one_batch_with_one_epoch(world: World) -> None:
    async with world.region() as region:
        staples = []

        async def enrol(number: int) -> None:
            staples.append(await region.log.enrol(request(number)))

        async with trio.open_nursery() as nursery:
            for number in range(1, 21):
                nursery.start_soon(enrol, number)
        head = region.registry.head
        assert head.users == 20 and head.size < 20 + 1 + 4, "one batch, or the first alone and then the rest"
        bundle = await region.registry.bundle(0, head.size)
        entries = [read_entry(entry) for entry in decode_bundle(bundle or b"")]
        epochs = [entry for entry in entries if isinstance(entry, EpochEntry)]
        assert [epoch.number for epoch in epochs] == list(range(len(epochs)))
        assert isinstance(entries[-1], EpochEntry) and isinstance(entries[0], EpochEntry)
        logged = [entry.signed for entry in entries if isinstance(entry, HomeEntry)]
        assert sorted(logged) == sorted(answer.signed for answer in staples)
        for answer in staples:
            verify_stapled_home(answer.signed, answer.staple, ROOT, world.trust("norden", 2), None, NOW)


async def test_the_same_request_again_gives_the_same_record(world: World) -> None:
    async with world.region() as region:
        answers = []

        async def enrol() -> None:
            answers.append(await region.log.enrol(request(7)))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(enrol)
        await enrol()
        assert len({answer.signed for answer in answers}) == 1
        size = region.registry.head.size
        record = read_home(answers[0].signed)
        second = await region.log.enrol(ask(following(record), user_key(7)))
        await enrol()  # also when there is a newer one
        assert region.registry.head.size == size + 2 and answers[-1].signed == answers[0].signed
        assert read_home(second.signed).version == 2


async def test_a_revoked_device_does_not_come_back_versions_later(world: World) -> None:
    """Also where the version before does not know of it any more."""
    async with world.region() as region:
        record = read_home((await region.log.enrol(request(1))).signed)
        [phone], laptop = record.devices, device(b"l" * 32, 2)
        for _ in range(2):
            answer = await region.log.enrol(ask(following(record, devices=(laptop,)), user_key(1)))
            record = read_home(answer.signed)
        again = structs.replace(phone, since=4)
        with pytest.raises(ReturnedDevice):
            await region.log.enrol(ask(following(record, devices=(laptop, again)), user_key(1)))


async def test_versions_of_one_user_in_one_batch_follow_each_other(world: World) -> None:
    async with world.region() as region:
        one = await region.log.enrol(request(3))
        record = read_home(one.signed)
        outcomes: list[object] = []

        async def enrol(asked: bytes) -> None:
            try:
                outcomes.append(read_home((await region.log.enrol(asked)).signed).version)
            except VersionTaken as error:
                outcomes.append(type(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(enrol, ask(following(record), user_key(3)))
            nursery.start_soon(enrol, ask(following(record, devices=(device(b"x" * 32, 2),)), user_key(3)))
        assert sorted(map(str, outcomes)) == sorted(map(str, [2, VersionTaken])), "two ways to go on: one is taken"


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (b"", OperatorError),
        (ask(first(1), user_key(2)), BadSignature),  # the registrar alone enrols nobody
        (request(1, region="sauda", cell="sauda/1"), OperatorError),
        (request(1, cell="norden/7"), TrustError),
        (ask(first(1, version=2, user=b"u" * 32, prev=b"p" * 32), user_key(1)), BrokenChain),
        (request(1, devices=()), OperatorError),
    ],
)
async def test_what_is_refused_is_not_logged(world: World, asked: bytes, error: type[Exception]) -> None:
    async with world.region() as region:
        with pytest.raises(error):
            await region.log.enrol(asked)
        good = await region.log.enrol(request(9))
        assert region.registry.head.users == 1 and good.signed


async def test_new_users_only_where_they_are_taken(world: World) -> None:
    async with world.region() as region:
        with pytest.raises(OperatorError, match="no new users"):
            await region.log.enrol(request(1), founds=False)
        record = read_home((await region.log.enrol(request(1))).signed)
        assert await region.log.enrol(ask(following(record), user_key(1)), founds=False)


async def test_one_witness_that_is_away_delays_nobody_where_one_is_enough(world: World) -> None:
    async with world.region(k=1) as region:
        region.doors["sauda"].shut = True
        answer = await region.log.enrol(request(1))
        _, proven = verify_stapled_home(answer.signed, answer.staple, ROOT, world.trust("norden", 1), None, NOW)
        assert list(proven.times) == ["vika.example/witness"]


async def test_with_too_few_witnesses_the_record_is_logged_and_asking_again_gives_the_staple(world: World) -> None:
    async with world.region() as region:
        await region.log.enrol(request(1))
        region.doors["sauda"].shut, region.choir.wait_s = True, 0.2
        with pytest.raises(TooFewWitnesses, match="are logged, and not cosigned yet"):
            await region.log.enrol(request(2))
        assert region.registry.head.users == 2
        with pytest.raises(TooFewWitnesses):
            await region.log.standing(b"u" * 32)
        region.doors["sauda"].shut, region.choir.wait_s = False, PATIENCE_S
        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    answer = await region.log.enrol(request(2))
                    break
                except TooFewWitnesses:
                    await trio.sleep(0.05)
        verify_stapled_home(answer.signed, answer.staple, ROOT, world.trust("norden", 2), None, NOW)
        assert region.registry.head.users == 2


async def test_nothing_is_logged_before_the_witnesses_confirmed_the_end(world: World) -> None:
    async with world.region() as region:
        await region.log.enrol(request(1))
    async with world.region(wait_s=0.1) as region:
        for door in region.doors.values():
            door.shut = True
        with pytest.raises(TooFewWitnesses, match="not confirmed yet"):
            await region.log.enrol(request(2))
        assert region.registry.head.users == 1


async def test_an_old_copy_of_the_registry_signs_nothing(world: World) -> None:
    """Rollback of a log: witnesses have our own signature under more than we have."""
    async with world.region() as region:
        await region.log.enrol(request(1))
    kept = {path.name: path.read_bytes() for path in (world.directory / "norden").glob("registry*")}
    async with world.region() as region:
        await region.log.enrol(request(2))
    for path in (world.directory / "norden").glob("registry*"):
        path.unlink()
    for name, data in kept.items():
        (world.directory / "norden" / name).write_bytes(data)
    with pytest.raises(ExceptionGroup) as caught:
        async with world.region() as region:
            await trio.sleep(20)
    assert caught.group_contains(RolledBack, match="old copy|this registry ends at 3")


async def test_a_database_behind_its_mark_is_not_opened(world: World) -> None:
    async with world.region() as region:
        await region.log.enrol(request(1))
    kept = (world.directory / "norden" / "registry.sqlite").read_bytes()
    async with world.region() as region:
        await region.log.enrol(request(2))
    (world.directory / "norden" / "registry.sqlite").write_bytes(kept)
    with pytest.raises(RolledBack, match="missing"):
        async with world.region():
            pass


async def test_it_goes_on_where_it_stopped(world: World) -> None:
    sizes = []
    for number in range(1, 5):
        async with world.region() as region:
            await region.log.enrol(request(number))
            head = region.registry.head
            sizes.append(head.size)
            checkpoint = parse_checkpoint(parse_note(head.note).text)
            assert (checkpoint.size, checkpoint.root) == (head.size, head.root) and head.users == number
    assert sizes == [3, 5, 7, 9]


async def test_a_queue_that_is_full_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.registrar.log.REGISTRAR_QUEUE", 10)
    async with world.region() as region:
        with pytest.raises(Overloaded):
            await region.log.enrol(request(1))


async def test_the_end_of_the_registrar_ends_who_waits(world: World) -> None:
    """Who is in the batch that is with the witnesses, and who waits for the next one."""
    outcomes: list[str] = []

    async def enrol(region: Region, number: int) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await region.log.enrol(request(number))
        outcomes.append("ended")

    async with trio.open_nursery() as nursery, world.region(wait_s=30) as region:
        for door in region.doors.values():
            door.delay_s = 30
        for number in (1, 2):
            nursery.start_soon(enrol, region, number)
            await trio.testing.wait_all_tasks_blocked(0.05)
    assert outcomes == ["ended", "ended"]


def test_the_logs_name_is_its_keys() -> None:
    assert log_key("norden").name == "norden.example/log"


def moving(record: HomeRecord, number: int, cell: str, release: SigningKey) -> bytes:
    """A released request to move."""
    payload = following(record, region=cell.partition("/")[0], cell=cell, move_epoch=record.payload.move_epoch + 1)
    data, signature = decode(ask(payload, user_key(number)))
    return pack([data, signature, release_home(data, release)])


async def test_who_comes_from_another_region_brings_the_records_and_they_are_logged_too(world: World) -> None:
    async with world.region("norden") as norden, world.region("sauda") as sauda:
        one = read_home((await norden.log.enrol(request(1))).signed)
        asked = moving(one, 1, "sauda/1", registrar_key("norden"))
        with pytest.raises(OperatorError, match="first record"):  # it follows nothing that is known there
            await sauda.log.enrol(asked)
        with pytest.raises(OperatorError, match="no new users"):
            await sauda.log.enrol(asked, founds=False, before=[one.signed])
        other = read_home((await norden.log.enrol(request(2))).signed)
        with pytest.raises(BadSignature):  # somebody else's records
            await sauda.log.enrol(asked, before=[other.signed])
        with pytest.raises(BadSignature):  # it was not released
            await sauda.log.enrol(moving(one, 1, "sauda/1", registrar_key("vika")), before=[one.signed])
        answer = await sauda.log.enrol(asked, before=[one.signed])
        trust = world.trust("sauda", 2)
        two, _ = verify_stapled_home(answer.signed, answer.staple, ROOT, trust, one, NOW)
        assert await sauda.log.enrol(asked, before=[one.signed]) == answer and sauda.registry.head.users == 1
        # and goes on there, away and back again
        rotated = ask(following(two, user_key=bytes(user_key(3).verify_key)), user_key(1))
        three = read_home((await sauda.log.enrol(rotated)).signed, two)
        back = await norden.log.enrol(moving(three, 3, "norden/1", registrar_key("sauda")), before=[
            one.signed, two.signed, three.signed,
        ])  # fmt: skip
        standing = await norden.log.standing(one.user)
        assert [read_home(signed).cell for signed in standing.records] == ["norden/1", "sauda/1", "sauda/1", "norden/1"]
        newest = read_chain(standing.records)[-1]
        assert same_home(newest.signed, back.signed) and norden.registry.head.users == 2
        assert verify_newest(newest, standing.evidence, world.trust("norden", 2), FRESH).users == 2
        for signed in standing.records:
            assert verify_staple(split_home(signed)[1], home_entry(split_home(signed)[0]), world.trust("norden", 2))


async def test_new_users_are_signed_before_their_batch_and_a_forgery_never_gets_into_one(world: World) -> None:
    refused, batches = [0], [0]

    def count() -> None:
        refused[0] += 1

    def batch(_: int, __: int) -> None:
        batches[0] += 1

    async with world.region() as region:
        region.log.on_refused, region.log.on_batch = count, batch
        for asked in (ask(first(1), user_key(2)), b"nonsense"):
            with pytest.raises((BadSignature, OperatorError)):
                await region.log.enrol(asked)
        assert (refused, batches, region.registry.head.size) == ([1], [0], 1)
        await region.log.enrol(request(1))
        assert (refused, batches, region.registry.head.size) == ([1], [1], 3)
