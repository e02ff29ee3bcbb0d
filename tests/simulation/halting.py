"""The nodes of a simulated federation ask its registrars which logs forked, and halt federation with such a region: the
real cluster.halts, over the simulated network. It goes by a root document of its own, which names the logs: that by
which the nodes live names none, for then every home record would need a proof.

What must hold: no node halts federation with a region whose log does not fork; what it halts stays halted, through
crashes; and no letter goes from a node to a region that it has halted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import trio

import cluster.halts
import cluster.node
from cluster.halts import Halts
from cluster.registrar.http import Caller
from relay.core.trust import Root, RootCell, RootRegion
from tests.roots import verified_root
from tests.simulation.keys import log_key, public, witness_key
from tests.simulation.network import Host
from tests.simulation.nodes import SimNode
from tests.simulation.people import FAR
from tests.simulation.world import Violation

LOOK_S: Final = 1.0  # seconds between two looks
GRACE_S: Final = 2.0  # seconds for what was on its way when a region was halted
Dial = Callable[[Host, str, str], Awaitable[trio.abc.Stream]]  # from a host in a region to a region's registrar
_HERE: ContextVar[SimNode] = ContextVar("the node whose task this is")


@lru_cache(maxsize=8)
def root_with_logs(regions: Sequence[str]) -> Root:
    """What the nodes' own root document says, and the logs."""
    said = [
        RootRegion(
            region, b"", public(f"{region}/registrar"), (RootCell(f"{region}/1", ()),), str(log_key(region).verifier),
            str(witness_key(region).verifier), "http://127.0.0.1:7500",
        )
        for region in regions
    ]  # fmt: skip
    return verified_root(said, FAR, name="simulated")


class _Halts(Halts):
    """By the root document that names the logs, whatever the node's own says."""

    def follow(self, root: Root) -> None:
        if any(region.log_key for region in root.payload.regions):
            super().follow(root)


class NodeHalts:
    """What every node knows of forks. `regions`: those that have registrars; `forks`: whose log does; empty: none."""

    def __init__(self, nodes: Sequence[SimNode], regions: Sequence[str], forks: str, dial: Dial) -> None:
        self.nodes, self.regions, self.forks = {node.host.name: node for node in nodes}, regions, forks
        self._dial = dial
        self._root = root_with_logs(tuple(regions))
        self._halts: dict[str, Halts] = {}  # of the newest life of each node
        self._since: dict[str, float] = {}  # when a node was seen to have halted federation with `forks`

    @contextmanager
    def told(self) -> Iterator[None]:
        """Inside, nodes that start ask the registrars, where there are any."""
        if not self.regions:
            yield
            return
        with TemporaryDirectory() as folder:
            before = cluster.node.Halts, cluster.halts.caller
            vars(cluster.node)["Halts"], cluster.halts.caller = partial(self._new, Path(folder)), self._caller
            try:
                yield
            finally:
                vars(cluster.node)["Halts"], cluster.halts.caller = before

    def _new(self, folder: Path, root: Root, region: str, data: Path, *rest: Any) -> Halts:
        """In the task of a node that starts; what it opens itself begins there, too."""
        name = data.parent.name
        _HERE.set(self.nodes[name])
        halts = self._halts[name] = _Halts(self._root, region, folder / name, *rest)
        if name in self._since and not self._knows(name):
            raise Violation(f"{name} has forgotten that it halted federation with {self.forks}")
        return halts

    def _caller(self, name: str, url: str, root: Root | None, region: str) -> Caller:
        node = _HERE.get()
        return Caller(name, partial(self._dial, node.host, node.region, region))

    def _knows(self, name: str) -> bool:
        """For its own region's log, a warning is all that there is."""
        halts = self._halts[name]
        return bool(halts.why(f"{self.forks}/1") or (self.nodes[name].region == self.forks and halts.warning))

    def unaware(self) -> list[str]:
        """Nodes of other regions that do not know of the fork."""
        return [name for name, node in self.nodes.items() if node.region != self.forks and not self._knows(name)]

    # --- what must hold ------------------------------------------------------------------------------
    async def look(self) -> None:
        while True:
            await trio.sleep(LOOK_S)
            for name, halts in self._halts.items():
                if halts.warning and not (self.forks and self._knows(name)):
                    raise Violation(f"{name} says that a log forked, and none did: {halts.warning}")
                for region in self.regions:
                    if region != self.forks and halts.why(f"{region}/1"):
                        raise Violation(f"{name} has halted federation with {region}, whose log does not fork")
                if halts.warning and name not in self._since:
                    self._since[name] = trio.current_time()
                    self.nodes[name].world.trace("federation halted", name, self.forks)

    def sent(self, source: Host, target: Host) -> None:
        """A letter leaves a host for another one."""
        since = self._since.get(source.name)
        crosses = target.is_node and target.region == self.forks != source.region
        if crosses and since is not None and trio.current_time() - since > GRACE_S:
            raise Violation(f"{source.name} sends a letter to {target.name}, after it halted federation with it")
