"""Sixteen threads that lease, unload, offload, reclaim and are cancelled, in any order."""

from __future__ import annotations

import pytest
from benches.races import schedule

SCHEDULES = 500
GROUPS = 10


@pytest.mark.parametrize("group", range(GROUPS))
def test_nothing_is_used_after_it_went_and_nothing_is_left(group: int) -> None:
    for number in range(SCHEDULES // GROUPS):
        schedule(seed=1000 * group + number, steps=2)
