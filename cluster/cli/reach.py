"""Which nodes of a cell can be asked from here, and asking them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from cluster.cli.exits import NoAnswer
from cluster.config import load_config
from cluster.config_keys import Address
from cluster.control.api import CellView, NotLeading
from cluster.control.pages import NotNow, Unanswered, ask_view, give_order
from cluster.local import Layout
from relay.errors import OperatorError

LOOK_S: Final = 0.2  # seconds between two looks at a cell
_AGAIN_S: Final = 3.0  # seconds for a cell that is choosing its leader


@dataclass(frozen=True)
class Door:
    """A node on this machine: where it shows its cell, and where it takes orders (None: nowhere)."""

    node: str
    admin: Address
    control: Path | None


@dataclass(frozen=True)
class Reach:
    """The nodes of one cell that are here."""

    doors: tuple[Door, ...]

    async def view(self, patient: bool = False) -> CellView:
        """The cell as its leader sees it, where that is here, or else whoever knows most. `patient`: wait where nobody
        answers. Raises NoAnswer."""
        while not (views := await self._ask_all()):
            if not patient:
                where = ", ".join(str(door.admin) for door in self.doors)
                raise NoAnswer(f"no node answers at {where}", "Start one; its log says why it does not answer")
            await trio.sleep(LOOK_S)
        return max(views, key=lambda view: (view.term, view.leader == view.node, view.commit))

    def can_order(self, node: str) -> bool:
        """Whether the node takes orders from here."""
        return any(door.node == node and door.control for door in self.doors)

    async def order(self, order: str, node: str) -> None:
        """Have the leader do something about `node`; what it refuses only for now is tried again until just before the
        caller's deadline. Raises OperatorError (also: the leader is elsewhere), NoAnswer."""
        until, refused = trio.current_time() + _AGAIN_S, "the cell has no leader"
        while True:  # never cut off in the middle: then nobody would know whether the order was given
            leader = (await self.view()).leader
            control = next((door.control for door in self.doors if door.node == leader), None)
            if leader and control is None:
                remedy = f"Run this on the server of {leader}, with its --config ([listen] control is set in it)"
                raise OperatorError(f"{leader} leads the cell, and takes no orders from here", remedy)
            if control is not None:
                try:
                    await give_order(control, order, node)
                    return
                except NotNow as error:
                    if trio.current_time() + 2 * LOOK_S >= trio.current_effective_deadline():
                        raise NoAnswer(error.text, error.remedy) from None
                    refused, until = error.text, trio.current_time() + _AGAIN_S
                except (NotLeading, Unanswered) as error:
                    refused = error.text
            if trio.current_time() >= until:
                raise NoAnswer(refused, "Try again; `posthouse cell status` shows who leads")
            await trio.sleep(LOOK_S)

    async def _ask_all(self) -> list[CellView]:
        views: list[CellView] = []

        async def ask(door: Door) -> None:
            try:
                views.append(await ask_view(door.admin))
            except Unanswered:
                return

        async with trio.open_nursery() as nursery:
            for door in self.doors:
                nursery.start_soon(ask, door)
        return views


def reach_of(config: Path | None, directory: Path, region: str | None) -> Reach:
    """The node of that config, or all nodes of a region of the federation in `directory`. Raises OperatorError."""
    if config is not None:
        loaded = load_config(config)
        return Reach((Door(loaded.node.name, loaded.listen.admin, loaded.listen.control),))
    layout = Layout.load(directory)
    if region is None and len(layout.regions) > 1:
        raise OperatorError(f"{directory} has several regions", f"Say which: --region {' | '.join(layout.regions)}")
    nodes = layout.nodes(region or layout.regions[0])
    return Reach(tuple(Door(node.name, node.admin_addr, _if_socket(node.control_path)) for node in nodes))


def _if_socket(path: Path) -> Path | None:
    return path if path.is_socket() else None
