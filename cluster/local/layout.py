"""Where a federation on one machine keeps what, and on which ports it listens. Names and ports only, no secrets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec
from nacl.signing import SigningKey

from cluster.config_keys import Address
from cluster.local.home import Home
from relay.core.shapes import Name
from relay.errors import OperatorError


CAPTURED: Final = "captured"
FIRST: Final = "n1"  # the node of a region that makes its cell's log


class Ports(msgspec.Struct, frozen=True):
    """The loopback ports of one node."""

    clients: int
    links: int
    admin: int


class BorderPort(msgspec.Struct, frozen=True):
    """Where the nodes of region `source` dial `node` of region `target` when borders stand between the regions."""

    source: Name
    target: Name
    node: Name
    port: int


class FederationFile(msgspec.Struct, frozen=True):
    """federation.json. Written last: a directory without it was not finished."""

    format: Literal[2]
    regions: dict[Name, dict[Name, Ports]]
    borders: tuple[BorderPort, ...] = ()


@dataclass(frozen=True)
class NodeLayout:
    """One node's files and addresses."""

    region: str
    cell: str
    name: str
    directory: Path
    clients_addr: Address
    links_addr: Address
    admin_addr: Address

    @property
    def label(self) -> str:
        """What people call it."""
        return f"{self.region}-{self.name}"

    @property
    def config_path(self) -> Path:
        return self.directory / "node.toml"

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def control_path(self) -> Path:
        return self.directory / "control"

    @property
    def log_path(self) -> Path:
        return self.directory / "log"


@dataclass(frozen=True)
class Layout:
    """A federation on disk: root.bin, federation.json, targets.json, nodes/<region>-<node>/, and what a Home has."""

    home: Home
    file: FederationFile

    @classmethod
    def load(cls, directory: Path) -> Layout:
        """Raises OperatorError where `directory` holds no (finished, readable) federation."""
        path = directory.absolute() / "federation.json"
        try:
            return cls(Home(directory.absolute()), msgspec.json.decode(path.read_bytes(), type=FederationFile))
        except OSError as error:
            remedy = "Start with `posthouse up`, or give the directory with --dir (or POSTHOUSE_DIR)"
            raise OperatorError(f"{path}: {error.strerror}", remedy) from None
        except msgspec.DecodeError as error:
            remedy = "It was written by another version or changed by hand; use another --dir"
            raise OperatorError(f"{path} is not understood: {error}", remedy) from None

    @property
    def directory(self) -> Path:
        return self.home.directory

    @property
    def regions(self) -> tuple[str, ...]:
        return tuple(self.file.regions)

    def registrar(self, region: str) -> SigningKey:
        """The key that signs home records of `region`. Raises OperatorError."""
        return self.home.registrar(region)

    @property
    def captured_dir(self) -> Path:
        """Where `posthouse up --capture` keeps what crosses the borders."""
        return self.directory / CAPTURED

    @property
    def nodes_dir(self) -> Path:
        return self.directory / "nodes"

    def nodes(self, region: str) -> tuple[NodeLayout, ...]:
        """The nodes of a region's cell; the first one makes its log. Raises OperatorError for a region that is not
        here."""
        nodes = self.file.regions.get(region)
        if nodes is None:
            raise OperatorError(f"no region {region!r} in {self.directory}", f"There are: {', '.join(self.regions)}")
        return tuple(self._node(region, name, ports) for name, ports in nodes.items())

    def every_node(self) -> tuple[NodeLayout, ...]:
        """The nodes of all regions."""
        return tuple(node for region in self.regions for node in self.nodes(region))

    def node(self, region: str, name: str = FIRST) -> NodeLayout:
        """Raises OperatorError for a node that is not here."""
        nodes = {node.name: node for node in self.nodes(region)}
        if name not in nodes:
            raise OperatorError(f"region {region} has no node {name!r}", f"There are: {', '.join(nodes)}")
        return nodes[name]

    def _node(self, region: str, name: str, ports: Ports) -> NodeLayout:
        return NodeLayout(
            region=region,
            cell=f"{region}/1",
            name=name,
            directory=self.nodes_dir / f"{region}-{name}",
            clients_addr=Address("127.0.0.1", ports.clients),
            links_addr=Address("127.0.0.1", ports.links),
            admin_addr=Address("127.0.0.1", ports.admin),
        )
