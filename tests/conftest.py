"""Settings every test runs under."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# These machines are shared and noisy: how long an example takes says nothing. Where a run decides whether a change
# lands, the same examples are tried each time; anywhere else new ones are.
settings.register_profile(
    "shared machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    derandomize="CI" in os.environ,
    print_blob=True,
)
settings.load_profile("shared machine")
