"""What this process uses, and what bounds it, as the kernel counts.

``memory()`` reads from descriptors that stay open, so that a look costs a few microseconds however
much is resident. ``limits()`` lists every bound there is; the least of them is ``memory().limit``,
as it was at most two seconds ago: limits may change while a process runs.
"""

from __future__ import annotations

from memweir._core import Limit, Memory, Pressure, limits, memory

__all__ = ["Limit", "Memory", "Pressure", "limits", "memory"]
