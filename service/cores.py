"""How many processor cores this process may really use, and the thread counts that follow from it.

A container with a quota of two cores on a machine of forty still reports forty to a library that asks
naively; OpenMP then starts forty threads, and the scheduler stops them all at the end of every period.
Likewise, two spinning OpenMP threads on two cores are fastest alone and many times slower as soon as anything
else runs. Hence cores minus one for the model, and one for FAISS. And glibc keeps a heap for nearly every thread, up to
eight a core, none of which uses what another has freed; two of them are enough here.
"""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
M_ARENA_MAX = -8  # malloc.h
ARENAS = 2


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


def available_cores(cgroup: Path = CGROUP) -> int:
    """Return the number of cores this process may use: its affinity, cut to the control group's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    limit = quota(cgroup)
    return cores if limit is None else max(1, min(cores, math.ceil(limit)))


def model_threads(asked: int, cores: int | None = None) -> int:
    """Return the threads of one forward pass: `asked`, or (0) the available cores minus one, and at least one."""
    return asked or max(1, (cores or available_cores()) - 1)


def one_openmp_thread_by_default() -> None:
    """Make one OpenMP thread the default of every library that is loaded afterwards.

    FAISS keeps that (several threads make a single query slower, and its setting is each calling thread's
    own); torch is given its number explicitly by `set_model_threads`.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # Tokenizers would start a pool of their own; free titles come a few at a time, so it never helps.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def few_heaps() -> bool:
    """Let glibc keep `ARENAS` heaps instead of one for nearly every thread; call it before threads are started.

    Artifacts are read by one thread and freed by another: by default their memory lay around in a dozen heaps, and
    a process that swapped grew by a tenth. `MALLOC_ARENA_MAX` in the environment wins. Returns whether it was set.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS))
    except (AttributeError, OSError):
        return False  # not glibc


def set_model_threads(threads: int) -> None:
    """Set the threads of a forward pass, for whichever thread runs it."""
    import torch

    torch.set_num_threads(threads)
