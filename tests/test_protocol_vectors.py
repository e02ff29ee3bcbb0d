"""docs/PROTOCOL.md and docs/vectors.json say what the code does."""

from __future__ import annotations

import re
from enum import IntEnum
from pathlib import Path
from typing import get_args

import pytest

from docs import vectors
from relay.core import wire
from relay.core.envelope import envelope_id

TEXT = (Path(__file__).parent.parent / "docs/PROTOCOL.md").read_text("utf-8")
MESSAGES = (*get_args(wire.ClientMessage), *get_args(wire.ServerMessage))


def test_the_vectors_are_up_to_date() -> None:
    assert vectors.FILE.read_text("utf-8") == vectors.rendered(), "run `make docs` and look at what changed"


def test_every_message_has_a_vector() -> None:
    assert [type(message) for message in vectors.messages()] == list(MESSAGES)


def test_the_vectors_hold() -> None:
    made = vectors.vectors()
    for entry in made["messages"]:
        data = bytes.fromhex(entry["bytes"])
        decode = wire.decode_client if data[1] < 64 else wire.decode_server
        assert wire.encode_message(decode(data)) == data, entry["name"]
    proof = vectors.messages()[-1]
    assert isinstance(proof, wire.Proof) and wire.encode_proof(proof) == wire.encode_message(proof)
    envelope = made["envelope"]
    assert envelope_id(bytes.fromhex(envelope["envelope"])).hex() == envelope["id"]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.__name__)
def test_the_text_names_every_message_with_tag_and_fields(message: type[wire.Struct]) -> None:
    fields = ", ".join(message.__struct_fields__)
    row = f"| {message.__name__.upper()} | {message.__struct_config__.tag} | {fields} |"
    assert row in TEXT, f"docs/PROTOCOL.md lacks: {row}"


@pytest.mark.parametrize("codes", [wire.Code, wire.Fault])
def test_the_text_names_every_code(codes: type[IntEnum]) -> None:
    for code in codes:
        assert re.search(rf"^\| {code.value} \| {code.name} \|", TEXT, re.MULTILINE), f"docs/PROTOCOL.md lacks {code!r}"
