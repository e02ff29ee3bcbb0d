"""What an operator sees when something goes wrong: one message, a remedy, a status, and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
import trio
from click.testing import CliRunner, Result

from cluster.cli import app as _app
from cluster.cli.app import COMMANDS
from cluster.cli.exits import Exit, NoAnswer, deadline, exit_of
from cluster.cli.options import ending_like_ctrl_c
from relay.core.wire import Code
from relay.errors import (
    BadSignature, ConfigError, DiskFailed, OperatorError, Overloaded, PeerError, PosthouseError, Refused,
    ResidencyError, Rollback, RolledBack, StoreLocked,
)  # fmt: skip

ROOT = Path(__file__).parents[3]


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Result:
    @click.command()
    def fail() -> None:
        raise error

    module = type(sys)("failing")
    module.fail = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "failing", module)
    monkeypatch.setitem(COMMANDS, "fail", "failing:fail")
    return CliRunner().invoke(_app, ["fail"])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OperatorError("a"), Exit.OPERATOR),
        (ConfigError("f", [("x", "y", "z")]), Exit.OPERATOR),
        (StoreLocked("a"), Exit.OPERATOR),
        (BadSignature("a"), Exit.UNTRUSTED),
        (Rollback("a"), Exit.UNTRUSTED),
        (RolledBack("a"), Exit.UNTRUSTED),
        (PeerError("a"), Exit.UNTRUSTED),
        (ResidencyError("a"), Exit.UNTRUSTED),
        (Refused(Code.MAILBOX_FULL, "a"), Exit.FAILED),
        (Refused(Code.UNREACHABLE, "a"), Exit.UNREACHABLE),
        (Overloaded("a"), Exit.UNREACHABLE),
        (NoAnswer("a"), Exit.UNREACHABLE),
        (DiskFailed("a"), Exit.FAILED),
        (PosthouseError("a"), Exit.FAILED),
    ],
)
def test_each_error_has_a_status(error: PosthouseError, status: Exit, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_of(error) == status
    result = failing(error, monkeypatch)
    assert result.exit_code == status
    assert result.stderr == f"posthouse: {error}\n" and result.stdout == ""


def test_groups_are_unwrapped_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = [OperatorError("port in use", "Stop it"), OperatorError("port in use", "Stop it")]
    inner = ExceptionGroup("y", [Refused(Code.EXPIRED, "too late"), busy[0]])
    result = failing(BaseExceptionGroup("x", [inner, busy[1]]), monkeypatch)
    assert result.stderr == "posthouse: too late\nposthouse: port in use. Stop it\n"
    assert result.exit_code == Exit.OPERATOR


def test_files_are_an_operators_business(monkeypatch: pytest.MonkeyPatch) -> None:
    result = failing(PermissionError(13, "Permission denied", "some/file"), monkeypatch)
    assert result.exit_code == Exit.OPERATOR and "some/file: Permission denied" in result.stderr


def test_interrupts_inside_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failing(KeyboardInterrupt(), monkeypatch).exit_code == Exit.INTERRUPTED
    group = BaseExceptionGroup("x", [KeyboardInterrupt(), OperatorError("a")])
    assert failing(group, monkeypatch).exit_code == Exit.INTERRUPTED


def test_a_bug_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    result = failing(ExceptionGroup("x", [OperatorError("a"), ZeroDivisionError()]), monkeypatch)
    assert isinstance(result.exception, ExceptionGroup)


@pytest.mark.parametrize("args", [["nonsense"], ["send"], ["send", "--as"], ["recv", "--deadline", "-1", "--as", "x"]])
def test_usage(args: list[str]) -> None:
    result = CliRunner().invoke(_app, args)
    assert result.exit_code == Exit.USAGE and "Error: " in result.stderr


async def test_deadline(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(NoAnswer, match=r"late\. Wait longer"), deadline(5, "late", "Wait longer"):
        await trio.sleep_forever()
    with deadline(5, "late", "Wait longer") as scope:
        scope.deadline += 5
        await trio.sleep(7)


def run(*args: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}  # type: ignore[dict-item]
    command = [sys.executable, "-m", "cluster.cli", *args]
    return subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_the_module_is_the_command() -> None:
    done = run("version")
    assert done.returncode == 0 and done.stdout.startswith(b"posthouse ") and b"Python 3." in done.stdout
    assert run().returncode == Exit.USAGE


@pytest.mark.parametrize("locale", ["C", "POSIX", "pl_PL.ISO-8859-2", "C.UTF-8"])
def test_text_survives_any_locale(tmp_path: Path, locale: str) -> None:
    done = run("card", "--as", "Łukasz", "--dir", str(tmp_path / "지우"), env={"LC_ALL": locale})
    assert done.returncode == Exit.OPERATOR
    assert "지우 has no users".encode() in done.stderr, done.stderr


def test_a_reader_who_goes_away_is_no_error() -> None:
    command = f"'{sys.executable}' -m cluster.cli directory --help | true"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, env=environment, timeout=60, check=False)
    assert done.stderr == b""


def test_a_service_managers_signal_ends_like_ctrl_c() -> None:
    with pytest.raises(KeyboardInterrupt), ending_like_ctrl_c():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_a_peer_said_does_not_speak_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registrar's refusal is shown as it came: other regions have registrars, too."""
    result = failing(PeerError("the registrar of sauda answered 500", "\x1b[2J\x1b]0;ok\x07 done\r\nå"), monkeypatch)
    assert not {"\x1b", "\x07", "\r"} & set(result.stderr)
    assert result.stderr.endswith("\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}]0;ok"
                                  "\N{REPLACEMENT CHARACTER} done\N{REPLACEMENT CHARACTER}\nå\n")  # fmt: skip
