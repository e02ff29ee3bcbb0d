"""Every command has help and is documented, and what configs/ and docs/ say is so."""

from __future__ import annotations

import configparser
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cluster.cli import app
from cluster.cli.exits import MEANING, Exit
from cluster.cli.reference import commands, reference

ROOT = Path(__file__).parents[3]
COMMANDS = dict(commands(app, "posthouse"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_is_documented(name: str) -> None:
    command = COMMANDS[name]
    assert command.help, name
    result = CliRunner().invoke(app, [*name.split()[1:], "--help"])
    assert result.exit_code == 0 and result.output.startswith(f"Usage: {name}")
    assert f"# {name}\n" in (ROOT / "docs/CLI.md").read_text("utf-8")
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.help, f"{name} {param.opts[0]} has no help"


def test_the_reference_is_up_to_date() -> None:
    remedy = "run: posthouse docs > docs/CLI.md"
    assert (ROOT / "docs/CLI.md").read_text("utf-8") == reference(), remedy


def test_statuses_are_documented() -> None:
    assert set(MEANING) == set(Exit)
    output = CliRunner().invoke(app, ["--help"]).output
    for status, meaning in MEANING.items():
        assert f"{status.value:<4} {meaning}" in output


def test_the_service_restarts_after_a_crash_and_not_after_a_mistake() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "configs/posthouse.service")
    service = unit["Service"]
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"].split() == [
        str(int(status)) for status in (Exit.USAGE, Exit.OPERATOR, Exit.UNTRUSTED)
    ]
    assert "ExecStartPre" not in service, "its exit status would not keep systemd from trying again for ever"
    assert service["ExecStart"].endswith("posthouse node run /etc/posthouse/node.toml")
