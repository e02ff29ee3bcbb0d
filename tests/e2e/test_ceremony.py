"""A whole ceremony: keys of three people in separate directories, two of whom sign; and the region that runs on it."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.request import urlopen

import trio

from cluster.config_keys import Address
from relay.core.trust import verify_root
from tests.e2e.test_cell import Operator, Servers, whole
from tests.patience import PATIENCE_S
from tests.ports import free_ports

PEOPLE = ("anna", "bela", "cyra")
NAMES = ("n1", "n2", "n3")


class Ceremony:
    """The table in one directory, each person in their own: what one types at each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.table, self.operator = folder, folder / "table", Operator(None)
        self.dir = ("--dir", str(self.table))

    async def keys(self) -> None:
        for person in PEOPLE:
            for role in ("root", "keeper"):
                await self.operator.types("federation", "key", str(self.private(person, role)))
                shutil.copy(self.private(person, role).with_suffix(".pub"), self.folder)

    def private(self, person: str, role: str) -> Path:
        return self.folder / person / f"{person}-{role}.pem"

    def pubs(self, role: str) -> list[str]:
        return [word for name in PEOPLE for word in (f"--{role}-key", str(self.folder / f"{name}-{role}.pub"))]

    async def signs(self, person: str, name: str, role: str) -> str:
        """The stick goes to the person, and back to the table."""
        stick = self.folder / person / "stick"
        shutil.copytree(self.table / "staged", stick, dirs_exist_ok=True)
        said = await self.operator.types(
            "federation", "sign", str(stick / name), "--key", str(self.private(person, role)), *self.trusted(), "--yes"
        )
        shutil.copy(stick / name, self.table / "staged")
        return said

    def trusted(self) -> list[str]:
        """What each of them has kept since the last publication."""
        kept = self.table / "root.bin"
        return ["--trusted", str(kept)] if kept.exists() else []

    async def publish(self, status: int = 0) -> str:
        return await self.operator.types("federation", "publish", *self.dir, status=status)


async def test_two_of_three_make_a_federation_that_runs(tmp_path: Path) -> None:
    ceremony, region = Ceremony(tmp_path), tmp_path / "r"
    operator, first = ceremony.operator, free_ports(13)[0]
    where = ["--host", "127.0.0.1", "--listen", "127.0.0.1", "--nodes", "3", "--dir", str(region)]
    ports = ["--clients", str(first), "--links", str(first + 5), "--admin", str(first + 10)]
    await operator.types("init", "region", "amber", *where, *ports)
    await ceremony.keys()
    await operator.types(
        "federation", "init", "--threshold", "2", "--keeper-threshold", "2", *ceremony.pubs("root"),
        *ceremony.pubs("keeper"), *ceremony.dir,
    )  # fmt: skip
    await operator.types("federation", "add-region", str(region / "amber.region"), *ceremony.dir)
    assert "ADDS amber" in await ceremony.signs("anna", "targets.json", "keeper")
    assert "any 2 of 3 keys" in await ceremony.signs("anna", "root.json", "root")
    refused = await ceremony.publish(status=3)
    assert "root.json lacks 1 of 2 signatures: any of bela-root" in refused and "targets.json lacks 1 of 2" in refused
    for name, role in (("targets.json", "keeper"), ("root.json", "root")):
        await ceremony.signs("cyra", name, role)
    assert "amber  fingerprint" in await ceremony.publish()
    published = (ceremony.table / "root.bin").read_bytes()
    await operator.types("init", "join", str(ceremony.table / "root.bin"), "--dir", str(region))
    admins = [Address("127.0.0.1", first + 10 + number) for number in range(3)]
    async with trio.open_nursery() as nursery:
        servers = Servers(region, nursery)
        await servers.start(*NAMES)
        await whole(*admins)
        await ceremony.publish()
        await news_is_taken(ceremony, region, admins)
        await servers.stop("n3")
        (region / "server-n3" / "root.bin").write_bytes(published)
        said = await operator.types("node", "run", servers.config("n3"), status=3)
        assert "timestamp version 1 after 2" in said, "what it has trusted it remembers"
        shutil.copy(ceremony.table / "root.bin", region / "server-n3" / "root.bin")
        await servers.start("n3")
        await whole(*admins)
        for name in NAMES:
            await servers.stop(name)


async def news_is_taken(ceremony: Ceremony, region: Path, admins: list[Address]) -> None:
    """Running nodes take a newer root document, and keep it."""
    newest = ceremony.table / "root.bin"
    until = verify_root(newest.read_bytes(), 0).payload.fresh_until / 1000
    await ceremony.operator.types("init", "join", str(newest), "--dir", str(region))
    for name, admin in zip(NAMES, admins, strict=True):
        with trio.fail_after(PATIENCE_S):
            while True:
                if await fresh_until(admin) == until:
                    break
                await trio.sleep(0.2)
        assert (region / f"server-{name}/data/trusted-root.bin").read_bytes() == newest.read_bytes()
        assert '"root_taken"' in (region / f"{name}.log").read_text()


async def fresh_until(admin: Address) -> float:
    url = f"http://{admin}/metrics"
    shown = await trio.to_thread.run_sync(lambda: urlopen(url, timeout=PATIENCE_S).read().decode())
    (line,) = [line for line in shown.splitlines() if line.startswith("posthouse_root_fresh_until_timestamp_seconds ")]
    return float(line.split()[1])
