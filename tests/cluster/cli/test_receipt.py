"""`posthouse receipt verify`: what it says, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.cli.app import app
from cluster.cli.exits import Exit
from tests.attesting import Signer, make_root
from tests.relay.core.test_receipts import GOOD, LOG_ID, N1, PAGE, ROOT
from tests.flipping import flipped


def verify(folder: Path, data: bytes, *words: str, root: bytes = ROOT.signed) -> int:
    (folder / "receipt").write_bytes(data)
    (folder / "root.bin").write_bytes(root)
    with pytest.raises(SystemExit) as ended:
        app.main(["receipt", "verify", str(folder / "receipt"), "--root", str(folder / "root.bin"), *words])
    return int(ended.value.code or 0)


def test_a_receipt_that_holds_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pins = ("--federation-id", ROOT.federation_id.hex(), "--log-id", LOG_ID.hex())
    assert verify(tmp_path, GOOD, *pins) == Exit.OK
    said = capsys.readouterr().out
    assert f"envelope    {PAGE.ids[3].hex()}" in said and "accepted in norden/1, the sender's" in said
    assert "n1, n2: 2 of 3, 2 needed" in said and "it does not prove" in said and "where in the world" in said
    assert verify(tmp_path, PAGE.receipt(0)) == Exit.OK
    assert "stored in norden/1, the recipient's home cell" in capsys.readouterr().out


def test_what_does_not_hold_ends_with_5_and_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "envelope").write_bytes(b"another")
    for data, words, reason in (
        (flipped(GOOD), (), "signature does not hold"),
        (b"no receipt", (), "not a receipt"),
        (PAGE.receipt(0, N1), (), "1 of the 3 nodes"),
        (PAGE.receipt(0, N1, Signer("sueden", "n2")), (), "a node of sueden/1"),
        (GOOD, ("--log-id", "00" * 16), "is of log"),
        (GOOD, ("--federation-id", "00" * 32), "another federation's"),
        (GOOD, ("--envelope", str(tmp_path / "envelope")), "another envelope's"),
    ):
        assert verify(tmp_path, data, *words) == Exit.UNTRUSTED, reason
        told = capsys.readouterr()
        assert reason in told.err and "holds" not in told.out and "Traceback" not in told.err
    assert verify(tmp_path, GOOD, root=make_root(("n4", "n5", "n6")).signed) == Exit.UNTRUSTED
    assert "does not list norden/1/n1" in capsys.readouterr().err


def test_a_mistake_in_the_words_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path, GOOD, "--log-id", "xyz") == Exit.USAGE
    assert "32 hex digits" in capsys.readouterr().err
