"""What is signed, and how it is verified: the root document, home records, rosters (DESIGN sections 5 and 6).

Verify the exact bytes first, then parse them. Nothing here signs anything that a relay could sign for a user: the
`sign_*` helpers take the private key from whoever holds it (the device, the registrar).
"""

from __future__ import annotations

from relay.core.trust.devices import Device, Former
from relay.core.trust.homes import (
    REVOKED_GRACE,
    HomePayload,
    HomeRecord,
    prove_devices,
    sign_home,
    ask_home,
    request_home,
    endorse_home,
    endorse_request,
    release_home,
    join_home,
    read_home,
    read_chain,
    verify_home,
    verify_asked,
    verify_chain,
    verify_move,
    moves,
    check_current,
)
from relay.core.trust.root import (
    Delegation,
    RootPayload,
    Root,
    verify_root,
    reopen_root,
    follow_root,
    region_ends,
)
from relay.core.trust.rosters import (
    RosterCell,
    RosterHead,
    Member,
    RosterPart,
    VerifiedHead,
    group_id,
    sign_roster,
    verify_roster,
    verify_part,
    make_part,
)
from relay.core.trust.statement import (
    RootNode,
    RootCell,
    Policy,
    RootRegion,
)

__all__ = [
    "REVOKED_GRACE",
    "Device",
    "Former",
    "HomePayload",
    "HomeRecord",
    "prove_devices",
    "sign_home",
    "ask_home",
    "request_home",
    "endorse_home",
    "endorse_request",
    "release_home",
    "join_home",
    "read_home",
    "read_chain",
    "verify_home",
    "verify_asked",
    "verify_chain",
    "verify_move",
    "moves",
    "check_current",
    "Delegation",
    "RootPayload",
    "Root",
    "verify_root",
    "reopen_root",
    "follow_root",
    "region_ends",
    "RosterCell",
    "RosterHead",
    "Member",
    "RosterPart",
    "VerifiedHead",
    "group_id",
    "sign_roster",
    "verify_roster",
    "verify_part",
    "make_part",
    "RootNode",
    "RootCell",
    "Policy",
    "RootRegion",
]
