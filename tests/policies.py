"""Root documents of norden and sauda with policies, for tests."""

from __future__ import annotations

import msgspec

from relay.core.trust import Policy, Root
from tests.relay.conftest import make_root
from tests.relay.core.mailroom.conftest import FAR
from tests.roots import verified_root


def root_with(**policies: Policy) -> Root:
    """The root document of tests.relay.conftest, in which these regions have policies."""
    regions = [
        msgspec.structs.replace(region, policy=policies.get(region.name, region.policy))
        for region in make_root().payload.regions
    ]
    return verified_root(regions, FAR)
