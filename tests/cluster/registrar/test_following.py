"""A running registrar and another root document: whether its config holds with it, and whether it matters."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing

from cluster.registrar import run
from relay.core.trust import Root, RootCell, RootRegion
from relay.errors import ConfigError
from tests.roots import verified_root

UNTIL = 2_000_000_000_000


@dataclasses.dataclass(frozen=True)
class Config:
    root: Root
    source: Path = Path("registrar.toml")
    k: int = 0
    peers: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()
    inner: str = "unix:inner"


def root(*names: str) -> Root:
    return verified_root([RootRegion(name, b"", b"r" * 32, (RootCell(f"{name}/1", ()),)) for name in names], UNTIL)


async def test_what_holds_is_followed_what_does_not_is_said_and_no_news_wakes_nobody(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    one, two, three = root("norden"), root("norden", "sauda"), root("norden", "vika")
    answers: list[Any] = [
        ConfigError("registrar.toml", [("file", "another key", "Restore it")]),
        Config(three, k=1, peers=("vika",), inner="somewhere else"),
    ]

    def load(source: Path, now_ms: int) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(run, "load_config", load)
    ear, found = run._Ear(one), list[Any]()
    config: Any = Config(one)

    async def follow() -> None:
        found.append(await run._followed(config, ear))

    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            for news, left in ((root("norden"), 2), (two, 1), (three, 0)):
                ear.follow(news)
                await trio.testing.wait_all_tasks_blocked()
                assert len(answers) == left
    assert [entry["event"] for entry in logs] == ["root_not_followed"] and "another key" in logs[0]["text"]
    assert found == [Config(three, k=1, peers=("vika",))], "what else the config says counts at the next start"


async def test_a_registrar_that_does_not_hold_with_a_document_looks_at_each_one_that_comes(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    """Its config is mended meanwhile; or the next document lay half written where it was read again. That the next one
    says nothing new of the regions does not matter: it goes by the one of before."""
    one, two = root("norden"), root("norden", "sauda")
    answers: list[Any] = [ConfigError("registrar.toml", [("file", "half written", "Get it again")]), Config(two)]

    def load(source: Path, now_ms: int) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(run, "load_config", load)
    config: Any = Config(one)
    ear, found = run._Ear(one), list[Any]()

    async def follow() -> None:
        found.append(await run._followed(config, ear))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        ear.follow(two)
        await trio.testing.wait_all_tasks_blocked()
        assert len(answers) == 1
        ear.follow(root("norden", "sauda"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert found == [Config(two)]
