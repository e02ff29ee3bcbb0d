"""What the keepers of a small federation type, who have all keys in one directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def keeping(directory: Path, *files: Path | str, days: int = 365) -> Iterator[list[str]]:
    """Commands, to be run one after the other, that publish DIR/root.bin with what these region files say. The
    publication, and what is signed for it, holds for `days`."""
    where, lasts = ["--dir", str(directory)], ["--days", str(days)]
    if not (directory / "staged").exists():
        yield ["federation", "init", "--root-keys", "1", *lasts, *where]
    yield ["federation", "add-region", *map(str, files), *lasts, *where]
    yield from signing(directory, days)


def signing(directory: Path, days: int = 365) -> Iterator[list[str]]:
    """Sign whatever is staged, and publish it."""
    for name, key in (("root.json", "root-1.pem"), ("targets.json", "keeper-1.pem")):
        if (directory / "staged" / name).exists():
            path = directory / "staged" / name
            trusted = ["--trusted", str(directory / "root.bin")] if (directory / "root.bin").exists() else []
            yield ["federation", "sign", str(path), "--key", str(directory / "secrets" / key), *trusted, "--yes"]
    lasts = ["--timestamp-days", str(days), "--snapshot-days", str(days)]
    yield ["federation", "publish", *lasts, "--dir", str(directory)]
