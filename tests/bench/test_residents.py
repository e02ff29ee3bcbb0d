"""The script that says what users cost a relay's memory still runs, on the parts and on a real node process."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from bench.residents import main


@pytest.mark.parametrize("options", [[], ["--node"]])
def test_a_few_users_are_weighed(tmp_path, monkeypatch, options):
    monkeypatch.setattr("bench.lodgers._SETTLED_S", 1.0)
    file = tmp_path / "figures.json"
    run = CliRunner().invoke(main, ["--users", "700", "--json", str(file), *options])
    assert run.exit_code == 0, run.output
    found = json.loads(file.read_text())
    assert found["users"] == 700 and any("bytes a user" in name for name in found["figures"])
