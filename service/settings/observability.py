"""Settings of logs, traces and the record of feedback."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from service.settings.addresses import check_receiver
from service.settings.base import OptionalPath, Section


def _receiver(address: str) -> str:
    return check_receiver(address) if address else ""


class ObservabilitySettings(Section):
    """Settings of logs, traces and the record of feedback."""

    feedback_entries: int = Field(
        default=10_000,
        ge=0,
        le=10_000_000,
        description="Answers that are remembered, so that POST /feedback can name one; an older one is a 404. 0 "
        "turns feedback off.",
    )
    feedback_log: OptionalPath = Field(
        default=None,
        description="File that gets one JSON line for every answer and every feedback, for evaluation offline; it "
        "holds what was recommended, and grows until you rotate it.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe line that is logged; debug adds one line a request."
    )
    log_format: Literal["json", "console"] = Field(
        default="json", description="json: one object a line on standard error; console: the same for eyes."
    )
    otlp_endpoint: Annotated[str, AfterValidator(_receiver)] = Field(
        default="",
        description="Where traces go, as the address of an OTLP/HTTP receiver (http://collector:4318); nothing is "
        "traced, and nothing is paid for it, while it is empty. Needs the extra otel.",
    )
