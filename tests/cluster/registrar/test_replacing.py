"""Another key for a registrar: made where it stands still, and never so that two keys sign at one time."""

from __future__ import annotations

import os
from http import HTTPStatus
from pathlib import Path

import pytest
from msgspec import structs

from cluster.kept import hold_data
from cluster.registrar.config import RegistrarConfig, load_config, load_key
from cluster.registrar.replacing import Replacement, read_replacement, replace_key, replaced
from cluster.registrar.witness import open_witness
from cluster.trail import DIRECTORY
from relay.core.tlog import ED25519, AddCheckpoint
from relay.core.trust import EarlierKey
from relay.errors import ConfigError, OperatorError, StoreLocked
from relay.journal.portal import open_portal
from tests.cluster.registrar.site import NOW, registrar_key
from tests.cluster.registrar.test_config import load, make
from tests.relay.core.tlog.logbook import Book

@pytest.fixture
def config(tmp_path: Path) -> RegistrarConfig:
    make(tmp_path)
    return load(tmp_path)


async def test_the_new_key_is_there_the_old_one_beside_it_and_the_statement_is_told(
    config: RegistrarConfig, tmp_path: Path
) -> None:
    out, before = tmp_path / "out", config.registrar_path.with_name("norden.registrar.key.before")
    made = await replace_key(config, NOW, out, 0)
    assert read_replacement(out) == made
    assert made.before.ends == (("norden", 1), ("sauda", 0), ("vika", 0)), "the epoch of an empty log"
    assert made.before.key == bytes(registrar_key("norden").verify_key) != made.key
    assert bytes.fromhex(before.read_text()) == bytes(registrar_key("norden"))
    assert config.registrar_path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="names another registrar"):
        load_config(config.source, NOW)
    assert not (config.data / DIRECTORY).exists() and len([*config.data.glob(f"{DIRECTORY}-*/*.audit")]) == 1
    with pytest.raises(OperatorError, match="exists already"):
        await replace_key(config, NOW, out, 0)
    with pytest.raises(OperatorError, match="before exists already"):
        await replace_key(config, NOW, tmp_path / "other", 0)
    entry = config.root.region("norden")
    changed = replaced(entry, made)
    assert (changed.registrar_key, changed.earlier) == (made.key, (made.before,)) and replaced(changed, made) == changed
    again = Replacement(1, "norden", bytes(32), EarlierKey(made.key, ()))
    assert [one.key for one in replaced(changed, again).earlier] == [made.key, made.before.key]
    for wrong in (config.root.region("sauda"), structs.replace(entry, registrar_key=bytes(32))):
        with pytest.raises(OperatorError, match="was not replaced in the statement"):
            replaced(wrong, made)
    out.write_bytes(b"noise")
    with pytest.raises(OperatorError, match="is no replacement"):
        read_replacement(out)


async def test_what_runs_or_has_no_log_is_left_as_it_was(config: RegistrarConfig, tmp_path: Path) -> None:
    secret = config.registrar_path.read_bytes()
    with hold_data(config.data), pytest.raises(StoreLocked):
        await replace_key(config, NOW, tmp_path / "out", 0)
    (tmp_path / "other").mkdir()
    make(tmp_path / "other", named=False)
    with pytest.raises(OperatorError, match="names no log of norden"):
        await replace_key(load(tmp_path / "other"), NOW, tmp_path / "out")
    assert config.registrar_path.read_bytes() == secret and not (tmp_path / "out").exists()
    assert load_config(config.source, NOW).registrar == config.registrar


async def test_one_that_was_cut_short_is_begun_again(
    config: RegistrarConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device", "secrets")

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", fails)
        with pytest.raises(OperatorError, match="No space left") as refused:
            await replace_key(config, NOW, tmp_path / "out", 0)
    assert "Nothing was published" in refused.value.remedy
    assert load_config(config.source, NOW).registrar == config.registrar
    (tmp_path / "out").unlink()
    made = await replace_key(config, NOW, tmp_path / "out", 0)
    assert bytes.fromhex(config.registrar_path.read_text()) and made.key != bytes(config.registrar.verify_key)


async def test_where_other_logs_end_its_own_witness_knows(config: RegistrarConfig, tmp_path: Path) -> None:
    """It has stood by what they had; nobody has to be asked who may lie, or be away."""
    data, sauda = config.data, config.peers[0]
    data.mkdir()
    signer = load_key(tmp_path / "registrar-sauda/secrets/log.key", ED25519)
    book = Book([bytes([number]) for number in range(40)], signer)
    async with (
        open_portal() as portal,
        open_witness(data / "witness.sqlite", portal, config.witness, {sauda.log.name: sauda.log}, data / "evidence",
                     lambda: NOW // 1000) as witness,
    ):  # fmt: skip
        verdict = await witness.add_checkpoint(AddCheckpoint(0, (), book.note(40)).encode())
        assert verdict.status == HTTPStatus.OK
    made = await replace_key(config, NOW, tmp_path / "out", room=7)
    assert made.before.ends == (("norden", 1), ("sauda", 47), ("vika", 7))
