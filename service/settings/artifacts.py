"""Settings of artifacts: which are served, and what loading one may take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from service.settings.base import OptionalPath, Section


class ArtifactSettings(Section):
    """Settings of artifacts and of loading them."""

    artifacts: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Artifact folders to serve, separated by commas in the variable; the first is the one "
        "that answers requests that name none. NAME=FOLDER serves one under another name than it was trained as.",
    )
    artifacts_root: OptionalPath = Field(
        default=None,
        description="Folder whose subfolders may be loaded by name while the service runs; without it only the "
        "artifacts named at the start can be loaded again.",
    )
    max_artifact_bytes: int = Field(
        default=0,
        ge=0,
        le=2**50,
        description="Most memory that loaded artifacts may take together, shared parts counted once; a load that "
        "would pass it is refused with 409. During a swap old and new are both there. 0 means no limit.",
    )
    load_trial: Literal["never", "hot", "always"] = Field(
        default="hot",
        description="Whether an artifact is loaded in a process of its own first, which may take limited memory and "
        "time: never, hot (where the service runs already), always (at the start too). It costs the time of a start.",
    )
    load_seconds: float = Field(
        default=300.0,
        ge=1,
        le=86_400,
        description="Longest time that loading an artifact may take, the trial and checking its golden answers each; "
        "beyond it the load is refused and nothing is changed.",
    )
    load_memory_bytes: int = Field(
        default=0,
        ge=0,
        le=2**50,
        description="Most memory that the trial of a load may take; 0 takes half of what is free on the machine, or "
        "in its control group, when the load begins.",
    )
    allow_downloads: bool = Field(
        default=False,
        description="Whether a hub may be asked for a backbone that an artifact names, with its hash, and that is not "
        "on this machine. Off: such an artifact is refused, and nothing is fetched.",
    )
    warmup_requests: int = Field(
        default=32,
        ge=0,
        le=10_000,
        description="Requests answered before readiness, made from the artifact's golden histories; 0 leaves "
        "the first user to pay for first-time costs.",
    )

    @field_validator("artifacts_root")
    @classmethod
    def _is_there(cls, folder: Path | None) -> Path | None:
        if folder is not None and not folder.is_dir():
            raise ValueError("there is no such folder")
        return folder
