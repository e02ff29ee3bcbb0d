"""The `posthouse` command."""

from __future__ import annotations

try:
    from cluster.cli.app import app
except KeyboardInterrupt:  # before anything runs that could say so
    raise SystemExit(130) from None


def main() -> None:
    """Run the command line of this process, and exit with its status."""
    app(prog_name="posthouse")


__all__ = ["app", "main"]
