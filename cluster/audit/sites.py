"""Which nodes have their disks in a directory: each by its node.toml, which says in which region the disk stands."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.audit.scan import files_below
from cluster.config_keys import Address
from relay.core.trust import Root, verify_root
from relay.errors import OperatorError, ProtocolError, TrustError
from relay.journal.files import STORE_FILE

CONFIG = "node.toml"


class NothingHere(OperatorError):
    """A directory that holds no node's disk."""


@dataclass(frozen=True)
class Site:
    """A node's files. `top`: what is looked at, its data and what lies beside them. `admin`: where it shows itself."""

    region: str
    cell: str
    node: str
    config: Path
    data: Path
    storage_key: Path
    root: Path
    federation_id: str
    top: Path
    admin: Address | None = None

    def name(self, path: Path) -> str:
        """A file of this site, as findings name it."""
        return path.relative_to(self.top).as_posix()


def read_site(config: Path, data: Path | None = None) -> Site:
    """The site of a node by its config (`data`: a copy of its data directory instead of that). Certificates and ports
    are not looked at: a disk outlives them. Raises OperatorError."""
    try:
        tables: dict[str, Any] = tomllib.loads(config.read_text("utf-8"))
        node, paths, base = tables["node"], tables["paths"], config.absolute().parent
        own = base / Path(paths["data"]).expanduser()
        looked_at = (data or own).absolute()
        return Site(
            str(node["region"]), str(node["cell"]), str(node["name"]), config, looked_at,
            base / Path(paths["storage_key"]).expanduser(), base / Path(paths["root"]).expanduser(),
            str(paths.get("federation_id", "")), base if looked_at.is_relative_to(base) and data is None else looked_at,
            Address.parse(admin) if (admin := tables.get("listen", {}).get("admin")) else None,
        )  # fmt: skip
    except OSError as error:
        raise OperatorError(f"{config}: {error.strerror}", "Name a node's node.toml") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "`posthouse config check` says more"
        raise OperatorError(f"{config} does not say whose disk it is, and where ({error!r})", remedy) from None


def find_sites(directory: Path | None, config: Path | None) -> list[Site]:
    """The nodes whose configs lie in or below `directory`, or the one whose data directory (or a copy of it, beside
    its config) that is. With `config`, that node; `directory` is then its data, wherever they are. Sorted by region
    and name. Raises NothingHere; OperatorError for a config that cannot be read."""
    if directory is None:
        assert config is not None, "the command line asks for one of them"
        return [read_site(config)]
    if config is None and directory.is_file():
        return [read_site(directory)]
    if not directory.is_dir():
        raise NothingHere(f"{directory}: no directory is there", "Give that of a federation, a region or a node")
    if config is not None:
        return [read_site(config, directory)]
    configs = [path for path in files_below(directory) if path.name == CONFIG]
    if not configs and (beside := directory.absolute().parent / CONFIG).is_file():
        return [read_site(beside, directory)]
    if not configs:
        what = "no node.toml in it, below it or beside it: nobody can tell whose disk it is"
        raise NothingHere(f"{directory}: {what}", "Give the node's config with --config, or the federation's directory")
    return sorted((read_site(path) for path in configs), key=lambda site: (site.region, site.node, site.config))


def unclaimed_stores(directory: Path | None, sites: list[Site]) -> list[str]:
    """What there is to say of stores below `directory` that belong to none of the sites."""
    files = files_below(directory) if directory else []
    tops = [site.top.resolve() for site in sites]
    return [
        f"{path}: the store of no node.toml: it was not looked into" for path in files
        if path.name == STORE_FILE and not any(path.resolve().is_relative_to(top) for top in tops)
    ]  # fmt: skip


def newest_root(sites: list[Site]) -> Root:
    """The newest root document that one of the nodes has, verified; that it has run out is no reason not to look at
    what was kept under it. Raises OperatorError, TrustError."""
    roots: dict[bytes, Root] = {}
    for site in sites:
        try:
            pinned = bytes.fromhex(site.federation_id) or None
            root = verify_root(site.root.read_bytes(), 0, pinned)
        except OSError as error:
            raise OperatorError(f"{site.root}: {error.strerror}", f"{site.config} names it as the root") from None
        except (ProtocolError, ValueError) as error:
            raise OperatorError(f"{site.root} is no root document: {error}", f"{site.config} names it") from None
        roots[root.digest] = root
    newest = max(roots.values(), key=lambda root: root.rank)
    for root in roots.values():
        if root.federation_id != newest.federation_id:
            what = f"nodes of two federations: {root.payload.federation} and {newest.payload.federation}"
            raise OperatorError(what, "Look at them one after the other")
        if root.rank == newest.rank and root.digest != newest.digest:
            raise TrustError(f"two different root documents of version {root.payload.version}: a fork")
    return newest
