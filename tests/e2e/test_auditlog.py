"""What operators did is in the audit logs, of real processes; and who takes it out again is found out."""

from __future__ import annotations

from pathlib import Path

import trio
from click.testing import CliRunner

from cluster.audit.trails import read_log
from cluster.cli import app
from cluster.cli.exits import Exit
from cluster.core.auditlog import Entry
from cluster.env import RealEnv
from cluster.local import Layout, LocalFederation, make_federation
from cluster.local.layout import NodeLayout
from cluster.trail import DIRECTORY, files_in
from tests.e2e.test_cell import Operator
from tests.patience import PATIENCE_S


def entries(node: NodeLayout) -> list[Entry]:
    said: list[Entry] = []
    assert not read_log(files_in(node.data_dir / DIRECTORY), said.append).findings
    return said


def words(node: NodeLayout, *wanted: str) -> list[tuple[str, str, object]]:
    """What, outcome, and about which node."""
    return [(one.what, one.outcome.partition(":")[0], one.about.get("node", "")) for one in entries(node)
            if one.what in wanted]  # fmt: skip


async def kept_by_others(layout: Layout, node: NodeLayout) -> None:
    """Until the other nodes have the newest checkpoint that is not about their own logs."""
    own = [one.n for one in entries(node) if one.what not in ("seen", "log")][-1] + 1
    others = [other for other in layout.nodes("amber") if other != node]
    with trio.fail_after(PATIENCE_S):
        for other in others:
            while not any(_size_seen(one, node) >= own for one in entries(other)):  # noqa: ASYNC110 - of a process
                await trio.sleep(0.5)


def _size_seen(entry: Entry, node: NodeLayout) -> int:
    if entry.what != "seen" or entry.who != f"{node.cell}/{node.name}":
        return 0
    return int(str(entry.about["checkpoint"]).split("\n")[1])


async def test_orders_are_noted_and_who_takes_them_out_is_found(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber"], RealEnv(), nodes=3)
    operator, top = Operator(layout), str(layout.directory)
    _, n2, _ = nodes = layout.nodes("amber")
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        await operator.whole()
        await operator.cell("transfer-leader", "n2")
        assert "two voters" in await operator.cell("remove-node", "n3", status=Exit.OPERATOR)
        assert words(n2, "cell.remove-node") == [
            ("cell.remove-node", "begun", "n3"), ("cell.remove-node", "refused", "n3"),
        ]
        [led] = [node for node in nodes if words(node, "cell.transfer-leader")]
        assert words(led, "cell.transfer-leader")[:2] == [
            ("cell.transfer-leader", "begun", "n2"), ("cell.transfer-leader", "done", "n2"),
        ]
        await kept_by_others(layout, n2)
        said = await operator.types("audit", "verify", top)  # while they run
        assert "good  3 log(s)" in said and "kept elsewhere" in said and "by its own word" not in said
        note = await operator.types("audit", "checkpoint", str(n2.directory))
        assert note.startswith("posthouse.audit/amber/1/n2/")
    for node in nodes:
        started = [one.what for one in entries(node)]
        assert started[:2] == ["log", "node.start"] and started.count("store.open") == 1, started
        assert "cell.members" in started and started[-1] == "node.stop"
    shown = await operator.types("audit", "show", str(n2.directory))
    assert "cell.remove-node" in shown and "refused: " in shown and "127.0.0.1" not in shown
    (tmp_path / "kept").write_text(note)
    tampered(layout, n2, tmp_path / "kept")


def verify(*words: str, status: int = Exit.OK) -> str:
    """`posthouse audit verify`, in this process."""
    done = CliRunner().invoke(app, ["audit", "verify", *words])
    assert done.exit_code == status, done.output
    return done.output


def tampered(layout: Layout, node: NodeLayout, kept: Path) -> None:
    top = str(layout.directory)
    [file] = files_in(node.data_dir / DIRECTORY)
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    order = next(number for number, line in enumerate(lines) if b"refused" in line)

    def found(data: bytes, *paths: str) -> str:
        file.write_bytes(data)
        return verify(*paths, status=Exit.UNTRUSTED)

    changed = found(whole.replace(b"refused", b"allowed"), top)
    assert f"line {order + 1}: entry {order} is not the one that was signed" in changed
    dropped = found(b"".join(lines[:order] + lines[order + 1 :]), top)
    assert f"entry {order} is missing: entry {order + 1} stands in the place" in dropped
    moved = found(b"".join([*lines[: order - 1], lines[order], lines[order - 1], *lines[order + 1 :]]), top)
    assert f"entry {order - 1} is missing" in moved
    short = b"".join(lines[: order - 1])
    cut = found(short, top)
    assert f"it ends with entry {order - 2}, and amber/1/n" in cut and "at the end were taken away" in cut
    assert "good" in verify(str(node.directory)), "alone, a log that was cut back is whole"
    assert "kept keeps its signature" in found(short, str(node.directory), "--checkpoint", str(kept))
    file.write_bytes(whole)
    assert "good" in verify(top, "--checkpoint", str(kept))
    file.unlink()
    gone = verify(top, status=Exit.UNTRUSTED)
    assert "amber/1/n2 has its data" in gone and "was taken away, or lost" in gone
    file.write_bytes(whole)


async def test_a_node_that_is_killed_in_the_middle_of_an_append_goes_on(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber"], RealEnv(), nodes=1)
    [n1] = layout.nodes("amber")
    operator, top = Operator(layout), str(layout.directory)
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        assert "one node" in await operator.cell("transfer-leader", "n2", status=Exit.OPERATOR)
        fed.kill("amber", "n1")
        [file] = files_in(n1.data_dir / DIRECTORY)
        whole = file.read_bytes()
        with file.open("ab") as torn:
            torn.write(b'{"n":9,"at":"2026-')
        assert "cut short" in verify(top)
        await fed.start("amber", "n1")
        await fed.ready("amber", "n1")
        assert await fed.stop("amber", "n1") == Exit.OK
    assert file.read_bytes().startswith(whole) and "good  1 log" in verify(top)
    assert [one.what for one in entries(n1)].count("node.start") == 2
    said = await operator.types("journal", "repair", "--yes", str(n1.directory))
    assert "The log goes on as" in said
    assert words(n1, "journal.repair", "log.renew") == [
        ("journal.repair", "begun", ""), ("log.renew", "done", ""), ("journal.repair", "done", ""),
    ]
