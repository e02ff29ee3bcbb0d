"""What the README shows, works: its commands and its example are run, as they stand there, against `posthouse up`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
LINES = [line[2:] for line in README.splitlines() if line.startswith("$ ")]
COMMANDS = [line for line in LINES if ".venv/bin/posthouse " in line and not line.endswith(" up")]
EXAMPLE = re.search(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """An empty directory with `.venv/bin/posthouse` in it, where `posthouse up` runs."""
    command = tmp_path / ".venv/bin/posthouse"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cluster.cli "$@"\n')
    command.chmod(0o755)
    (tmp_path / "LICENSE").write_bytes((ROOT / "LICENSE").read_bytes())
    with subprocess.Popen(
        [command, "up"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        said = ""
        while "In another terminal" not in said and (line := process.stdout.readline()):
            said += line
        assert "In another terminal" in said, said
        try:
            yield tmp_path
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) in (0, 130)


def environment() -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name != "POSTHOUSE_DIR"}
    return {**plain, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}


def run(place: Path, *command: str) -> str:
    said = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S)
    assert said.returncode == 0, f"{command}: {said.stdout}{said.stderr}"
    return said.stdout


def test_commands_and_example_work_as_they_stand(place: Path) -> None:
    assert len(COMMANDS) >= 6
    said = {command: run(place, "sh", "-c", command) for command in COMMANDS}
    received = next(text for command, text in said.items() if "recv --as carol" in command)
    assert received.splitlines()[-1] == "Zażółć gęślą jaźń"
    assert (place / "letters/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert EXAMPLE is not None and len(EXAMPLE[1].strip().splitlines()) <= 16
    (place / "example.py").write_text(EXAMPLE[1], "utf-8")
    assert "Увидимся в девять" in run(place, sys.executable, "example.py")
