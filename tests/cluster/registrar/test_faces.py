"""The pages of a registrar, without a network: what each answers, and what errors look like from outside."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio

from cluster.core.homelog import read_answers, read_enrolled, read_requests, read_standing, verify_stapled_home
from relay.core.tlog import BadProof, TooFewWitnesses, parse_checkpoint, parse_note
from cluster.registrar import asking
from cluster.registrar.faces import Face, refusal
from cluster.registrar.metrics import RegistrarMetrics
from cluster.registrar.witness import SIZE_TYPE, origin_hash
from relay.core.codec import pack
from relay.core.trust import StapledHome, read_home, split_home
from relay.errors import BadSignature, DiskFailed, OperatorError, Overloaded, PosthouseError, StoreDamaged
from tests.relay.core.tlog import naive
from tests.relay.core.tlog.logbook import Book
from tests.cluster.registrar.site import NOW, ROOT, Region, World, ask, first, log_key, request, user_key
from tests.patience import PATIENCE_S


def face(world: World, region: Region, inner: bool = True) -> Face:
    def ready() -> str | None:
        return None if region.choir.confirmed else "waiting"

    return Face(region.log, world.witnesses[region.name], RegistrarMetrics(), inner, inner, ready)


async def test_every_page(world: World) -> None:
    async with world.region() as region:
        one = face(world, region)
        assert (await one.reply("GET", "/readyz", b"")).status == 503
        answer = read_enrolled((await one.reply("POST", "/enrol", request(1))).body)
        record, _ = verify_stapled_home(answer.signed, answer.staple, ROOT, world.trust("norden", 2), None, NOW)
        assert (await one.reply("GET", "/readyz", b"")).body == b"ready\n"
        assert b"posthouse_registrar_logged" in (await one.reply("GET", "/metrics", b"")).body
        note = parse_note((await one.reply("GET", "/checkpoint", b"")).body)
        assert parse_checkpoint(note.text).size == 3 and len(note.signatures) == 3
        standing = read_standing((await one.reply("GET", f"/user/{record.user.hex()}", b"")).body)
        assert [split_home(record)[0] for record in standing.records] == [answer.signed]
        later = read_standing((await one.reply("GET", f"/user/{record.user.hex()}?after=1", b"")).body)
        assert later.records == () and later.evidence == standing.evidence
        assert len((await one.reply("GET", "/tile/0/000.p/2", b"")).body) == 64
        for path in ("/tile/0/000", "/tile/0/000.p/4", "/tile/1/000", "/tile/entries/000", "/tile/x", "/user/12", "/"):
            assert (await one.reply("GET", path, b"")).status == 404, path
        assert one.takes("GET", "/anything") == 0 and one.takes("PUT", "/enrol") is None
        assert one.takes("POST", "/checkpoint") is None


async def test_many_requests_in_one_body(world: World) -> None:
    async with world.region() as region:
        one = face(world, region)
        bodies = [request(1), request(2), b"nonsense", ask(first(3), user_key(4)), request(1)]
        reply = await one.reply("POST", "/enrol-many", pack(bodies))
        alice, bob, nonsense, forged, again = read_answers(reply.body)
        for answer in (alice, bob):
            verify_stapled_home(answer.signed, answer.staple, ROOT, world.trust("norden", 2), None, NOW)
        assert nonsense.refusal.startswith(b"OperatorError\n") and forged.refusal.startswith(b"BadSignature\n")
        assert again == alice and not nonsense.signed and not forged.staple
        assert region.registry.head.size == 4  # two records, and two epochs: all were one batch
        for body in (b"nonsense", pack([b""] * 513), pack([1])):
            assert (await one.reply("POST", "/enrol-many", body)).status == 400, body
        assert one.takes("POST", "/enrol-many")
        assert face(world, region, inner=False).takes("POST", "/enrol-many") is None


async def test_many_requests_by_portions_and_each_error_as_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "REGISTRAR_BATCH", 2)
    sent: list[int] = []
    async with world.region() as region:
        one = face(world, region)

        class Straight:
            name = "norden"

            async def ask(self, method: str, path: str, body: bytes, most: int) -> tuple[int, bytes]:
                sent.append(len(read_requests(body)))
                reply = await one.reply(method, path, body)
                return reply.status, reply.body

        registrar = asking.Registrar("norden", ROOT, world.trust("norden", 2), cast(Any, Straight()))
        answers = await registrar.enrol_many([request(1), ask(first(2), user_key(9)), request(3)])
        assert sent == [2, 1] and isinstance(answers[1], BadSignature)
        assert [one.signed for one in answers if isinstance(one, StapledHome)] == [
            (await region.log.enrol(request(number))).signed for number in (1, 3)
        ]


async def test_a_witness_answers_as_tlog_witness_says(world: World) -> None:
    book, other = Book(naive.entries(9), log_key("sauda")), Book(naive.entries(9), log_key("norden"))
    async with world.region(k=0) as region:
        one = face(world, region, inner=False)
        seen = f"/{origin_hash(log_key('sauda').name)}/checkpoint"
        assert (await one.reply("GET", seen, b"")).status == 404
        for body, status in (
            (b"nonsense", 400),
            (other.request(0, 5).encode(), 404),  # its own log
            (Book(naive.entries(9), book.log).request(0, 5).encode().replace(b"old 0", b"old 9"), 400),
            (book.request(0, 5).encode(), 200),
            (book.request(0, 9).encode(), 409),
        ):
            reply = await one.reply("POST", "/add-checkpoint", body)
            assert reply.status == status, reply
        assert reply.content_type == SIZE_TYPE and reply.body == b"5\n"
        assert (await one.reply("GET", seen, b"")).body == book.note(5).encode()


async def test_what_is_refused_has_a_name(world: World) -> None:
    async with world.region() as region:
        reply = await face(world, region).reply("POST", "/enrol", ask(first(1), user_key(2)))
        assert reply.status == 422 and reply.body.startswith(b"BadSignature\n")
        reply = await face(world, region, inner=False).reply("POST", "/enrol", request(1))
        assert reply.status == 400 and b"takes in no new users" in reply.body
        assert (await face(world, region, inner=False).reply("GET", "/metrics", b"")).status == 404


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (TooFewWitnesses("t", "r"), 503, True),
        (Overloaded("t"), 503, True),
        (BadProof("t", "r"), 422, False),
        (BadSignature("t"), 422, False),
        (OperatorError("t", "r"), 400, False),
        (StoreDamaged("/a/path: t", "r"), 500, False),
        (DiskFailed("/a/path: t", "r"), 500, False),
    ],
)
def test_errors_as_answers(error: PosthouseError, status: int, retry: bool) -> None:
    reply = refusal(error)
    assert reply.status == status and bool(reply.retry_s) == retry
    assert reply.body.startswith(type(error).__name__.encode()) and b"path" not in reply.body


async def test_a_witness_that_is_slow_holds_up_one_batch_and_no_more(world: World) -> None:
    async with world.region() as region:
        await region.log.enrol(request(1))
        region.doors["sauda"].delay_s, region.choir.wait_s = 1000, 0.3
        with trio.fail_after(PATIENCE_S):
            for number in range(2, 12):
                with pytest.raises(TooFewWitnesses):
                    await region.log.enrol(request(number))
        assert region.registry.head.users == 11
    async with world.region(k=1, wait_s=1000) as region:
        region.doors["sauda"].delay_s = 1000
        with trio.fail_after(PATIENCE_S):
            answer = await region.log.enrol(request(20))
        assert read_home(answer.signed).version == 1
