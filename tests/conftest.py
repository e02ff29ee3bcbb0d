"""What every test shares: Hypothesis is deterministic where CI is set, so that a red run repeats."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A loaded two-core machine is slow now and then: deadlines and slow-data checks would only flake.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
