"""Settings every test runs under."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest
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

_numbers = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def _spools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Nothing that a test leaves in a spool is adopted by this user's own processes."""
    base = str(tmp_path_factory.mktemp("spools"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKEN_QUOTA_SPOOL_DIR", base)
        yield base


@pytest.fixture(autouse=True)
def _spool_of_its_own(_spools: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by another test."""
    monkeypatch.setenv("TOKEN_QUOTA_SPOOL_DIR", f"{_spools}/{next(_numbers)}")
