"""The script that weighs a long log still runs, and its store stays small where all is collected."""

from __future__ import annotations

import json

from click.testing import CliRunner

from bench.weight import main


def test_a_small_log_is_weighed(tmp_path, monkeypatch):
    for place in ("fold", "checkpoint"):
        monkeypatch.setattr(f"relay.core.mailroom.{place}.CHECKPOINT_BYTES", 100_000)
    file = tmp_path / "figures.json"
    run = CliRunner().invoke(
        main, ["--acked", "--envelopes", "1000", "--users", "20", "--batch", "50", "--json", str(file)]
    )
    assert run.exit_code == 0, run.output
    figures = json.loads(file.read_text())
    assert 10 <= figures["envelopes that wait"] < 100 and figures["size of the store, MiB"] < 10
