"""A load that is tried in a process of its own first: what an artifact does there does no harm.

The process may take so much memory and so much time and is ended beyond; it is told to end when the load is cancelled.
What it accepts is loaded here after it, from files with the same hashes: it says which manifest it saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modeling.artifact.folders import FolderError, files_in
from service.errors import StartError
from service.settings import Settings

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
STATM = Path("/proc/self/statm")
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE",
                  "LD_LIBRARY_PATH", "LD_PRELOAD", "XDG_CACHE_HOME", "VIRTUAL_ENV")  # fmt: skip
LARGEST_ANSWER = 65_536
POLITE = 10  # of 19: what serves goes first
# Addresses that libraries take beside memory, as they are imported and start threads: stacks, heaps, their own files.
LIBRARY_ADDRESSES = 4 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a load: bytes beside what the process has when it begins, and seconds."""

    memory: int
    seconds: float
    download: bool = False
    precision: str = "fp32"
    map_index: bool = False
    engine: bool = False  # finds items: the index is not read

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Of a service; without a setting, half of the memory that is free now."""
        memory = settings.load_memory_bytes or available_memory() // 2
        precision = settings.precision if settings.device == "cpu" and settings.precision != "auto" else "fp32"
        engine = bool(settings.qdrant_url)
        return cls(memory, settings.load_seconds, settings.allow_downloads, precision, settings.map_index, engine)


def available_memory() -> int:
    """Return the bytes that processes may still take: of the machine, cut to the control group's limit."""
    try:
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(available, int(limit) - int(used))
    except (OSError, ValueError):
        return available


async def try_out(folder: Path, limits: Limits) -> str:
    """Load the artifact in `folder` elsewhere and return the version it was; raises StartError. Can be cancelled."""
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), "OMP_NUM_THREADS": "1"}
    if not limits.download:
        environment["HF_HUB_OFFLINE"] = "1"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.artifacts.trial"),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        env=environment, limit=LARGEST_ANSWER, start_new_session=True,
    )  # fmt: skip
    try:
        question = json.dumps({"folder": str(folder.absolute()), **asdict(limits)}).encode()
        async with asyncio.timeout(limits.seconds):
            output, _ = await process.communicate(question)
    except TimeoutError:
        raise StartError(
            f"artifact {folder.name} takes longer than {limits.seconds:g} s to load (ANYO_LOAD_SECONDS)"
        ) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return _version(folder, limits, process.returncode or 0, output[-LARGEST_ANSWER:])


def _version(folder: Path, limits: Limits, code: int, output: bytes) -> str:
    try:
        answer: dict[str, Any] = json.loads(output.splitlines()[-1])
        if answer.get("refused"):
            raise StartError(str(answer["refused"]))
        return str(answer["version"])
    except (IndexError, ValueError, KeyError, AttributeError):
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
        raise StartError(
            f"artifact {folder.name} cannot be loaded: the process that tried it ended with {how}; it may take "
            f"{limits.memory} bytes (ANYO_LOAD_MEMORY_BYTES)"
        ) from None


def _mapped(asked: dict[str, Any]) -> int:
    """Addresses that mapped files take beside memory, at most."""
    if not asked["map_index"] and not asked["engine"]:
        return 0
    try:
        return sum(path.stat().st_size for path in files_in(Path(asked["folder"])).values())
    except (OSError, FolderError):
        return 0  # loading it will say so


def main() -> None:
    """Be that process: read what to load from standard input, write what came of it as the last line."""
    os.nice(POLITE)
    asked = json.loads(sys.stdin.buffer.read())
    import service.artifacts.loading

    _limit(int(asked["memory"]), _mapped(asked), float(asked["seconds"]))
    started = time.monotonic()
    try:
        parts = service.artifacts.loading.open_artifact(
            Path(asked["folder"]), "cpu", asked["precision"], share_backbone=False, precision_forced=True,
            download=asked["download"], map_index=asked["map_index"],
            open_index=service.artifacts.loading.only_vectors if asked["engine"] else None,
        )  # fmt: skip
        answer = {"version": parts.version, "seconds": round(time.monotonic() - started, 3)}
    except StartError as error:
        answer = {"refused": str(error)}
    except MemoryError:  # again, in what handled the first one
        answer = {
            "refused": f"artifact {Path(asked['folder']).name} cannot be loaded: it needs more memory than it may take"
        }
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # nothing is worth the time to tidy up


def _limit(memory: int, mapped: int, seconds: float) -> None:
    """Of memory that is written to, and of addresses, which also bounds it where a system does not count the former."""
    import warnings

    warnings.simplefilter("ignore")
    limits = {resource.RLIMIT_CPU: max(1, int(4 * seconds)), resource.RLIMIT_CORE: 0}
    if STATM.exists():  # elsewhere than on Linux there is no limit of memory: what is taken already is not known
        pages = [int(each) * resource.getpagesize() for each in STATM.read_text().split()]
        limits[resource.RLIMIT_DATA] = pages[5] + memory
        limits[resource.RLIMIT_AS] = pages[0] + memory + mapped + LIBRARY_ADDRESSES
    for what, most in limits.items():
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, hard))


if __name__ == "__main__":
    main()
