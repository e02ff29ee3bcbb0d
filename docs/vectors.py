"""Makes docs/vectors.json: what an implementation in another language can be checked against.

    python -m docs.vectors          writes the file; tests/test_protocol_vectors.py checks that it is up to date
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msgspec import structs
from nacl.signing import SigningKey

from docs import vectors_of_channels
from docs.vectors_of_logs import region_logs
from relay.client import Card
from relay.core import proven, receipts, sealing, trust, wire
from relay.core.block import make_block, position
from relay.core.book import Book, Taken
from relay.core.codec import Struct, digest, encode
from relay.core.envelope import Header, To, envelope_id, join
from relay.core.proven import told
from relay.core.widetree import leaf_hash

FILE = Path(__file__).with_name("vectors.json")

USER_KEY, REGISTRAR, DEVICE, SECOND = (SigningKey(bytes([seed]) * 32) for seed in (1, 2, 3, 4))
RECOVERY, NEXT_USER_KEY, THIRD = (SigningKey(bytes([seed]) * 32) for seed in (11, 12, 13))
NOW = 1_700_000_000_000  # Unix ms
AT = position(7, 3)
LOG_ID = bytes(range(16))
NONCE = bytes(range(32))


def public(key: SigningKey) -> bytes:
    return bytes(key.verify_key)


def plain(value: Any) -> Any:
    """Structs as objects, bytes as hex: readable JSON."""
    if isinstance(value, Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


# --- signed records ------------------------------------------------------------------------------
def home_records() -> list[trust.HomePayload]:
    one = trust.Device(public(DEVICE), bytes([5]) * 32, 1, b"", b"")
    two = trust.Device(public(SECOND), bytes([6]) * 32, 2, b"", b"")
    home, expires = ("amber", "amber/1"), NOW + 31_536_000_000
    first = trust.HomePayload(1, b"", 1, b"", *home, public(USER_KEY), (one,), 0, NOW, expires, public(RECOVERY))
    first = trust.prove_devices(first, [DEVICE])
    user = digest(encode(first))
    second = structs.replace(first, user=user, version=2, prev=user, devices=(*first.devices, two))
    second = trust.prove_devices(second, [SECOND])
    rotated = trust.Device(public(THIRD), bytes([10]) * 32, 2, two.id, b"")  # new keys for one, the other is lost
    third = structs.replace(
        second, version=3, prev=digest(encode(second)), user_key=public(NEXT_USER_KEY), devices=(rotated,)
    )
    return [first, second, trust.prove_devices(third, [THIRD])]


SIGNERS = (USER_KEY, USER_KEY, RECOVERY)  # of the three
NEW_DEVICES = (DEVICE, SECOND, THIRD)  # whose proof each of them brings


def records() -> list[dict[str, Any]]:
    made = []
    for payload, signer, device in zip(home_records(), SIGNERS, NEW_DEVICES, strict=True):
        signed = trust.sign_home(payload, signer, REGISTRAR)
        read = trust.read_home(signed)
        made.append({
            "what": f"home record, version {payload.version}",
            "user_key_seed" if signer is USER_KEY else "recovery_key_seed": bytes(signer).hex(),
            "registrar_key_seed": bytes(REGISTRAR).hex(), "device_key_seed": bytes(device).hex(),
            "fields": plain(payload), "payload": encode(payload).hex(), "digest": read.digest.hex(),
            "user": read.user.hex(), "signed": signed.hex(),
        })  # fmt: skip
    part = trust.make_part(1, [trust.Member(bytes([9]) * 32, 1), trust.Member(bytes([8]) * 32, 1)])
    head = trust.RosterHead(1, bytes([7]) * 32, 1, b"", public(DEVICE), (trust.RosterCell("amber/1", 2, digest(part)),))
    signed_head = trust.sign_roster(head, DEVICE)
    verified = trust.verify_roster(signed_head)
    made.append({
        "what": "roster, version 1", "owner_key_seed": bytes(DEVICE).hex(), "fields": plain(head),
        "payload": encode(head).hex(), "part": part.hex(), "group": verified.group.hex(), "signed": signed_head.hex(),
    })  # fmt: skip
    return made


# --- messages ------------------------------------------------------------------------------------
def challenge() -> wire.Challenge:
    return wire.Challenge(NONCE, "amber", "amber/1", "n1", LOG_ID, NOW)


def envelope() -> bytes:
    return join(encode(Header(1, To.MAILBOX, bytes([7]) * 32, 2, NOW, NOW + 60_000, 1)), b"a sealed body")


def messages() -> list[Struct]:
    """One of each message, the client's first."""
    first, second = (trust.sign_home(payload, USER_KEY, REGISTRAR) for payload in home_records()[:2])
    user = trust.read_home(first).user
    signature = DEVICE.sign(wire.challenge_bytes(challenge(), user, public(DEVICE))).signature
    own, receipt = envelope_id(envelope()), wire.Code.STORED
    return [
        wire.Hello(wire.VERSION, LOG_ID, AT, True, "example/1.0"),
        wire.Auth(user, public(DEVICE), signature, (first,)),
        wire.Submit((wire.SubmitItem("birch", envelope()),)),
        wire.Ack(position(9, 0)),
        wire.Lookup(1, bytes([7]) * 32, "birch", 0),
        wire.Roster(b"a signed head", (("amber/1", b"a member list"),)),
        wire.Ephemeral(bytes([7]) * 32, "birch", b"typing"),
        wire.Prove(2, "amber/1", proven.question([(9, told(own, receipt)), (0, told(bytes([7]) * 32, receipt))])),
        *vectors_of_channels.asked(),
        wire.AskRoot(3, 7, 0),
        challenge(),
        wire.Welcome(LOG_ID, AT, NOW, 1, 64, 1_000, 131_072, 256),
        wire.Receipt((wire.ReceiptItem(own, receipt, position(8, 0), 2, "amber/1"),)),
        wire.Deliver(position(8, 0), envelope()),
        wire.Empty(position(8, 1)),
        wire.Record(1, wire.Code.STORED, (first, second)),
        wire.Notice(position(9, 0), own, wire.Code.STORED, 2, "birch/1"),
        wire.Drain(5_000),
        wire.Error(wire.Fault.FENCED, "the device started a newer session", 0),
        wire.EphemeralFrom(bytes([7]) * 32, public(DEVICE), b"typing"),
        wire.Moved((b"signed record",)),
        wire.Proof(2, (proven_block(),), (proven.Missing(bytes([7]) * 32, wire.Code.UNPROVEN),)),
        *vectors_of_channels.told(),
        wire.RootPart(3, 8, 20, 0, b"a newer root documen"),
    ]


# --- receipts ------------------------------------------------------------------------------------
NODE_KEYS = {"n1": SigningKey(bytes([10]) * 32), "n3": SigningKey(bytes([11]) * 32)}


def proven_block() -> proven.ProvenBlock:
    """Block 7, which took ten envelopes; n1 and n3 of three stand by it. Their certificates are only names here: what
    an X.509 certificate must say is in the text."""
    header = encode(Header(1, To.MAILBOX, bytes([6]) * 32, 1, NOW, NOW + 60_000, 1))
    envelopes = (envelope(), *(join(header, b"another %d" % number) for number in range(9)))
    book = Book("amber/1", LOG_ID)
    taken = [
        Taken(envelope_id(data), wire.Code.STORED, position(7, 3 + n), 2, 2, NOW + 60_000)
        for n, data in enumerate(envelopes)
    ]
    book.keep(make_block(LOG_ID, 7, bytes(32), NOW, list(envelopes)), taken)
    statement = book.statement(7) or b""
    words = []
    for place, (node, signing) in enumerate(NODE_KEYS.items()):
        certificate, store = f"certificate of amber/1/{node}".encode(), bytes([place]) * 16
        together = [statement, b"another statement"][:: 1 - 2 * place]  # n3 signs it after the other one
        word = receipts.sign_statements(together, store, certificate, lambda data, by=signing: by.sign(data).signature)
        words.append(word.attestation(place))
    block = book.prove(7, book.find(7, [told(envelope_id(envelope()), wire.Code.STORED)]), words)
    assert block is not None
    return block


def receipt() -> dict[str, Any]:
    block = proven_block()
    statement = receipts.read_statement(block.statement)
    [ordinal], [path] = block.ordinals, block.paths
    leaf_bytes = receipts.leaf_head(statement.cell, statement.time) + block.rows
    leaf = receipts.read_leaf(leaf_bytes)
    data = receipts.make_receipt(leaf_bytes, ordinal, path, block.statement, block.attestations)
    return {
        "node_key_seeds": {node: bytes(key).hex() for node, key in NODE_KEYS.items()},
        "id": leaf.id.hex(), "leaf": {name: plain(value) for name, value in asdict(leaf).items()},
        "leaf_bytes": leaf_bytes.hex(), "leaf_hash": leaf_hash(leaf_bytes).hex(),
        "ordinal": ordinal, "path": path.hex(),
        "statement": plain(statement), "statement_bytes": block.statement.hex(),
        "statement_digest": receipts.said(block.statement).hex(),
        "attestations": [
            plain(one) | {"signed_bytes": receipts.signed_bytes(word.digests, word.store, word.certificate).hex()}
            for one, word in ((one, one.word(block.statement)) for one in block.attestations)
        ],
        "receipt": data.hex(),
    }  # fmt: skip


def vectors() -> dict[str, Any]:
    """Everything, in the order of docs/PROTOCOL.md."""
    first = trust.read_home(trust.sign_home(home_records()[0], USER_KEY, REGISTRAR))
    signed = wire.challenge_bytes(challenge(), first.user, public(DEVICE))
    return {
        "format": 1,
        "positions": [{"index": 1, "slot": 0, "position": position(1, 0)}, {"index": 7, "slot": 3, "position": AT}],
        "card": {"region": "amber", "user": first.user.hex(), "text": str(Card("amber", first.user))},
        "challenge": {
            "device_key_seed": bytes(DEVICE).hex(), "user": first.user.hex(), "challenge": plain(challenge()),
            "signed_bytes": signed.hex(), "signature": DEVICE.sign(signed).signature.hex(),
        },
        "envelope": {
            "header": encode(Header(1, To.MAILBOX, bytes([7]) * 32, 2, NOW, NOW + 60_000, 1)).hex(),
            "body": b"a sealed body".hex(), "envelope": envelope().hex(), "id": envelope_id(envelope()).hex(),
        },
        "messages": [
            {"name": type(message).__name__, "fields": plain(message), "bytes": encode(message).hex()}
            for message in messages()
        ],
        "records": records(),
        "region_logs": region_logs(first.signed, USER_KEY, REGISTRAR, NOW),
        "receipt": receipt(),
        "channel": vectors_of_channels.channels(DEVICE, NONCE, NOW),
        "padding": [{"size": size, "bucket": sealing.bucket(size)} for size in (1, 512, 513, 1_000, 5_000, 98_304)],
        "suite_1": dict(sealing.test_vectors()),
    }  # fmt: skip


def rendered() -> str:
    return json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(rendered(), "utf-8")
