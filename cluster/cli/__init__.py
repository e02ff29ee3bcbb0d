"""The `posthouse` command."""

from __future__ import annotations

from cluster.cli.app import app


def main() -> None:
    """Run the command line of this process, and exit with its status."""
    app(prog_name="posthouse")


__all__ = ["app", "main"]
