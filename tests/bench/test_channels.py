"""`python -m bench.channels`: that it runs, and the figures that are no matter of the machine."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from bench.channels import main


def test_a_member_who_is_away_leaves_nothing(tmp_path: Path) -> None:
    words = ["--members", "200", "--connected", "20", "--posts", "50", "--json", str(tmp_path / "figures.json")]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0
    (away,) = [line for line in done.output.splitlines() if "bytes of checkpoint" in line]
    assert away.endswith(" 0.0")
    assert (tmp_path / "figures.json").exists()
