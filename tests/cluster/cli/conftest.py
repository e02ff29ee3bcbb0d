"""A federation of two regions, made by commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cluster.cli import app

from tests.cluster.cli.ceremony import DIR, Posthouse, region_file, sign


@pytest.fixture
def posthouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Posthouse:
    """The command, in a directory where two regions have been made."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, status: int = 0, answer: str = "") -> Result:
        result = CliRunner().invoke(app, list(args), input=answer)
        assert result.exit_code == status and "Traceback" not in result.output, (args, result.output, result.exception)
        return result

    for region in ("norden", "sauda"):
        run("init", "region", region, "--host", f"{region}.example", "--dir", region)
    return run


@pytest.fixture
def table(posthouse: Posthouse) -> Posthouse:
    """A federation of both regions, published; the keys of all in table/secrets: 2 of 3."""
    posthouse("federation", "init", "--root-keys", "3", "--threshold", "2", *DIR)
    posthouse("federation", "add-region", region_file("norden"), region_file("sauda"), *DIR)
    sign(posthouse, "targets.json", "keeper-1", "keeper-3")
    posthouse("federation", "publish", *DIR)
    return posthouse
