"""Thread counts and malloc arenas for the CPU cores that this process may use.

In a container with a quota of two cores on a machine of forty, libraries see forty cores; OpenMP then starts forty
threads, which the scheduler throttles in every period. Two spinning OpenMP threads on two cores are fastest alone and
many times slower as soon as anything else runs. So the model gets the number of cores minus one, and FAISS gets one.
glibc creates up to eight malloc arenas per core, and memory freed in one is not reused in another; two are enough here.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

from modeling.cores import CGROUP as CGROUP
from modeling.cores import available_cores as available_cores
from modeling.cores import quota as quota

M_ARENA_MAX = -8  # malloc.h
MOST_LANES = 4
ARENAS = 2


@dataclass(frozen=True, slots=True)
class Shares:
    """Division of the cores: `lanes` concurrent forward passes with `threads` threads each; `alone`: threads of a pass
    when no other pass runs."""

    lanes: int
    threads: int
    alone: int


def shares(lanes: int, threads: int, device: str = "cpu", cores: int | None = None) -> Shares:
    """Return the shares for what was asked for; 0 leaves it to the cores that are there.

    Passes beside each other with few threads do more than one with many, as long as memory bears it; a lone request
    has all cores. On a GPU one pass at a time, with a thread to launch it.
    """
    available = cores or available_cores()
    if device != "cpu":
        return Shares(lanes or 1, threads or 1, threads or 1)
    lanes = lanes or min(MOST_LANES, available)
    return Shares(lanes, threads or max(1, available // lanes), threads or available)


def set_library_defaults() -> None:
    """Make one OpenMP thread the default of every library that is loaded afterwards, and let products keep no memory.

    FAISS keeps the thread (several make a single query slower, and its setting is each calling thread's
    own); torch is given its number explicitly by `set_model_threads`. Threads that wait for each other sleep: spinning
    ones are many times slower as soon as anything else runs.

    MKL keeps the buffers of its products for every thread and never gives one back: 60 to 90 MB for a model of 100 MB,
    and more whenever a thread met a product of a kind that was new to it.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ["MKL_DISABLE_FAST_MM"] = "1"
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
