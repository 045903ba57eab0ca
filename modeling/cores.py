"""Number of CPU cores that this process may use, on any system; used by training, service and benchmarks.

In a container with a quota of two cores on a machine of forty, ``os.cpu_count()`` is forty. This module imports nothing
heavy, since thread counts are set before the libraries that read them are loaded.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def quota(cgroup: Path = CGROUP) -> float | None:
    """Return the CPU quota of the control group in cores (version 2, then version 1), or None without one."""
    try:
        allowed, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            allowed = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if allowed in ("max", "-1") or int(period) <= 0:
        return None
    return int(allowed) / int(period)


def affinity_cores() -> int:
    """Return the number of cores the system lets this process run on; without an affinity (macOS) all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_cores(cgroup: Path = CGROUP) -> int:
    """Return the number of cores this process may use: its affinity, cut to the control group's quota."""
    cores, limit = affinity_cores(), quota(cgroup)
    return cores if limit is None else max(1, min(cores, math.ceil(limit)))


def asked_threads() -> int | None:
    """Return the number of threads that `OMP_NUM_THREADS` asks for (of a list the first), or None."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else None
