"""TUF metadata from bytes that nobody has verified yet: caps, then shape, then python-tuf's objects.

python-tuf parses whatever has the right keys in it, so the exact shape is checked before (theupdateframework.io,
specification 1.0, section 4). Only Ed25519 keys are taken, and each under one id: a key that stood there under two
would count twice in a threshold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, TypeAlias, Union

import msgspec
from msgspec import Meta
from nacl.bindings import crypto_core_ed25519_is_valid_point
from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, T, TargetFile, Targets, Timestamp
from tuf.api.serialization import SerializationError

from relay.core.trust.statement import MAX_REGIONS
from relay.errors import BadSignature, MixAndMatch, ProtocolError, TrustError
from relay.limits import KIB

MAX_METADATA: Final = 512 * KIB  # bytes of one file; targets with 256 regions of four keys each take about 300 KiB
MAX_KEYS: Final = 64  # of one role; a ceremony of more people than that does not come about
MAX_DEPTH: Final = 12  # brackets within each other; TUF's own deepest is 7

_HexKey = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_HexSignature = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]
_KeyId = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Version = Annotated[int, Meta(ge=1, lt=2**53)]
_Length = Annotated[int, Meta(ge=0, lt=2**53)]
_Threshold = Annotated[int, Meta(ge=1, le=MAX_KEYS)]
_Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_FileName = Annotated[str, Meta(min_length=1, max_length=128)]
_Time = Annotated[str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z")]


class _KeyValue(msgspec.Struct):
    public: _HexKey


class _Key(msgspec.Struct):
    keytype: Annotated[str, Meta(pattern=r"^ed25519\Z")]
    scheme: Annotated[str, Meta(pattern=r"^ed25519\Z")]
    keyval: _KeyValue


_Keys: TypeAlias = Annotated[dict[_KeyId, _Key], Meta(max_length=4 * MAX_REGIONS + 4 * MAX_KEYS)]
_KeyIds: TypeAlias = Annotated[list[_KeyId], Meta(min_length=1, max_length=MAX_KEYS)]


class _Role(msgspec.Struct):
    keyids: _KeyIds
    threshold: _Threshold


class _Roles(msgspec.Struct):
    root: _Role
    timestamp: _Role
    snapshot: _Role
    targets: _Role


class _Hashes(msgspec.Struct, forbid_unknown_fields=True):
    sha256: _Hash


class _Meta(msgspec.Struct):
    version: _Version
    length: _Length
    hashes: _Hashes


class _Target(msgspec.Struct):
    length: _Length
    hashes: _Hashes


class _Delegation(msgspec.Struct, forbid_unknown_fields=True):
    name: _FileName
    keyids: _KeyIds
    threshold: _Threshold
    terminating: bool
    paths: Annotated[list[_FileName], Meta(min_length=1, max_length=1)]


class _Delegations(msgspec.Struct, forbid_unknown_fields=True):
    keys: _Keys
    roles: Annotated[list[_Delegation], Meta(max_length=MAX_REGIONS)]


class _Signed(msgspec.Struct, tag_field="_type"):
    spec_version: Annotated[str, Meta(pattern=r"^1(\.[0-9]{1,4}){1,2}\Z")]
    version: _Version
    expires: _Time


class _Root(_Signed, tag="root"):
    federation: Annotated[str, Meta(min_length=1, max_length=64)]
    consistent_snapshot: bool
    keys: _Keys
    roles: _Roles


class _Timestamp(_Signed, tag="timestamp"):
    meta: Annotated[dict[_FileName, _Meta], Meta(min_length=1, max_length=1)]


class _Snapshot(_Signed, tag="snapshot"):
    meta: Annotated[dict[_FileName, _Meta], Meta(max_length=16 * MAX_REGIONS)]  # those that were removed stay listed


class _Targets(_Signed, tag="targets"):
    targets: Annotated[dict[_FileName, _Target], Meta(max_length=1)]
    delegations: _Delegations | msgspec.UnsetType = msgspec.UNSET


class _Signature(msgspec.Struct):
    keyid: _KeyId
    sig: _HexSignature


class _Metadata(msgspec.Struct, forbid_unknown_fields=True):
    signatures: Annotated[list[_Signature], Meta(max_length=4 * MAX_KEYS)]
    signed: Union[_Root, _Timestamp, _Snapshot, _Targets]


_shape: Final = msgspec.json.Decoder(_Metadata)
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_KINDS: Final[dict[type[Signed], str]] = {kind: kind.type for kind in (Root, Timestamp, Snapshot, Targets)}


def parse(data: bytes, kind: type[T], what: str) -> Metadata[T]:
    """The metadata in `data`, which must be of that kind; nothing is verified. Raises ProtocolError, which says `what`,
    whatever the bytes; TrustError where one key stands under two ids, or is none."""
    if len(data) > MAX_METADATA:
        raise ProtocolError(f"{what} of {len(data)} bytes", f"At most {MAX_METADATA} are taken")
    if _depth(data) > MAX_DEPTH:
        raise ProtocolError(f"{what}: more than {MAX_DEPTH} brackets within each other")
    try:
        shape = _shape.decode(data)
        if shape.signed.__struct_config__.tag != _KINDS[kind]:
            raise ProtocolError(f"{what} is {shape.signed.__struct_config__.tag} metadata, not {_KINDS[kind]}")
        metadata: Metadata[Any] = Metadata.from_bytes(data)
        _ = metadata.signed_bytes  # numbers that have no canonical form
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"{what} is not TUF metadata as Posthouse takes them: {error}") from None
    except (RepositoryError, SerializationError) as error:
        raise ProtocolError(f"{what} is not TUF metadata: {error.__cause__ or error}") from None
    if isinstance(shape.signed, _Root):
        roles = shape.signed.roles
        _check_keys(shape.signed.keys, [roles.root, roles.timestamp, roles.snapshot, roles.targets], what)
    elif isinstance(shape.signed, _Targets) and isinstance(shape.signed.delegations, _Delegations):
        _check_keys(shape.signed.delegations.keys, shape.signed.delegations.roles, what)
    return metadata


def _depth(data: bytes) -> int:
    """Brackets within each other, those in strings left out."""
    depth = deepest = 0
    for byte in _STRING.sub(b"", data):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _check_keys(keys: dict[str, _Key], roles: Sequence[_Role | _Delegation], what: str) -> None:
    for role in roles:
        if len(set(role.keyids)) != len(role.keyids) or not set(role.keyids) <= keys.keys():
            raise ProtocolError(f"{what}: a role's keys are not there, or there twice")
    values = [key.keyval.public for key in keys.values()]
    if len(set(values)) != len(values):
        raise TrustError(f"{what}: one key stands there under two ids, and would count twice")
    for value in values:  # OpenSSL, which verifies these signatures, asks for no more than that the equation holds
        if not crypto_core_ed25519_is_valid_point(bytes.fromhex(value)):
            raise TrustError(f"{what}: {value[:16]} is no Ed25519 public key: anybody could sign for it")


def check_signed(delegator: Root | Targets, role: str, metadata: Metadata[Any], what: str) -> None:
    """Raises BadSignature unless a threshold of the keys that `delegator` names for `role` have signed."""
    result = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    if not result:
        text = f"{what}: signed by {len(result.signed)} of the {result.threshold} keys that must sign"
        raise BadSignature(text, "Fetch it again from somebody you trust")


def check_file(entry: MetaFile | TargetFile, data: bytes, what: str) -> None:
    """Raises MixAndMatch where `data` is not the file that was signed."""
    try:
        entry.verify_length_and_hashes(data)
    except LengthOrHashMismatchError:
        raise MixAndMatch(f"{what} is not the one that was published with the rest") from None


def key_values(delegator: Root | Targets, role: str) -> tuple[bytes, ...]:
    """The Ed25519 public keys that may sign for `role`, in the order of the metadata."""
    listed = delegator.get_delegated_role(role).keyids
    return tuple(bytes.fromhex(delegator.get_key(keyid).keyval["public"]) for keyid in listed)


def ends_ms(signed: Signed) -> int:
    """Unix ms from which on it is not valid any more."""
    return int(signed.expires.timestamp()) * 1000
