"""`posthouse registrar enrol FILE…`: whatever is wrong with one file, or ends in between, what was done is not lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.cli.exits import NoAnswer
from cluster.cli.registrar import _enrol_all
from cluster.enrolment import read_records
from cluster.registrar import asking
from cluster.registrar.asking import Registrar
from cluster.registrar.faces import Face
from cluster.registrar.metrics import RegistrarMetrics
from relay.core.trust import read_home
from relay.errors import PeerError
from tests.cluster.registrar.site import ROOT, Region, World, ask, first, request, user_key


class Line:
    """A way to a registrar that is cut after so many requests to enrol."""

    name = "the registrar of norden"

    def __init__(self, world: World, region: Region, cut_after: int) -> None:
        self.face = Face(region.log, world.witnesses["norden"], RegistrarMetrics(), True, True, lambda: None)
        self.left = cut_after

    async def ask(self, method: str, path: str, body: bytes = b"", most: int = 0) -> tuple[int, bytes]:
        if method == "POST":
            if not self.left:
                raise PeerError(f"{self.name}: the connection ended")
            self.left -= 1
        reply = await self.face.reply(method, path, body)
        return reply.status, reply.body


async def test_what_was_answered_is_written_and_the_rest_is_named_and_asked_for_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(asking, "REGISTRAR_BATCH", 2)
    monkeypatch.setattr("cluster.cli.registrar.now_ms", lambda: world.now_ms)
    files = [tmp_path / str(number) for number in range(1, 8)]
    for number, file in enumerate(files, 1):
        file.write_bytes(request(number) if number != 2 else ask(first(2), user_key(9)))
    files.insert(1, tmp_path / "large")
    files[1].write_bytes(bytes(600_000))
    async with world.region() as region:
        line = Line(world, region, 2)
        registrar = Registrar("norden", ROOT, world.trust("norden", 2), line)  # type: ignore[arg-type]
        with pytest.raises(NoAnswer, match=r"ended: 3 of 8 requests have no answer: .*/5, .*/6, .*/7") as e:
            await _enrol_all(registrar, files)
        assert "Run the same command again" in e.value.remedy
        said = capsys.readouterr()
        assert f"{files[1]}: 600000 bytes" in said.err and f"{tmp_path}/2: BadSignature" in said.err
        written = [tmp_path / f"{number}.records" for number in (1, 3, 4)]
        assert sorted(tmp_path.glob("*.records")) == written
        before = [file.read_bytes() for file in written]
        line.left = 10
        assert await _enrol_all(registrar, files) == 2
        assert [file.read_bytes() for file in written] == before, "what is there stays as it is"
        assert len(sorted(tmp_path.glob("*.records"))) == len(sorted(tmp_path.glob("*.staple"))) == 6
        users = {read_home(read_records(file.read_bytes())[0]).user for file in tmp_path.glob("*.records")}
        assert len(users) == region.registry.head.users == 6


async def test_a_file_that_stands_in_the_way_is_named(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cluster.cli.registrar.now_ms", lambda: world.now_ms)
    (tmp_path / "1").write_bytes(request(1))
    (tmp_path / "2").write_bytes(request(2))
    (tmp_path / "1.records").write_bytes(b"\x90")
    async with world.region() as region:
        registrar = Registrar("norden", ROOT, world.trust("norden", 2), Line(world, region, 9))  # type: ignore[arg-type]
        assert await _enrol_all(registrar, [tmp_path / "1", tmp_path / "2"]) == 1
    assert f"{tmp_path}/1.records exists already. Move it away" in capsys.readouterr().err
    assert (tmp_path / "2.records").exists() and (tmp_path / "1.records").read_bytes() == b"\x90"
