"""Which nodes' disks a command looks at: those of DIR, or of the node of --config."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.audit.sites import NothingHere, Site, find_sites


def named_sites(directory: Path | None, config: Path | None) -> list[Site]:
    """See cluster.audit.sites.find_sites. Raises UsageError where neither is named, or nothing is there."""
    if directory is None and config is None:
        raise click.UsageError("Name a DIR, or a node's config with --config.")
    try:
        return find_sites(directory, config)
    except NothingHere as error:
        raise click.UsageError(f"{error}.") from None
