"""Settings of the store of users' histories that every kind of store has."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from service.settings.base import Section
from service.settings.store_kinds import parse_store_url


def _checked(url: str) -> str:
    parse_store_url(url)
    return url


class HistoryStoreSettings(Section):
    """Settings of the history store; `service.settings.store_kinds` adds those of one kind."""

    store: Annotated[str, AfterValidator(_checked)] = Field(
        default="sqlite:///data/histories.sqlite",
        description="Where users' histories live, as a URL: sqlite:///PATH (a relative path starts at the working "
        "directory), sqlite:///:memory: which forgets them at exit, or redis://HOST:PORT/DB, rediss://… (TLS), "
        "unix:///PATH?db=DB, which several replicas can share.",
    )
    store_timeout_ms: int = Field(
        default=500,
        ge=1,
        le=60_000,
        description="Longest wait for the store; a later history counts as missing and the answer says "
        "`store` in `degraded`. With Redis, ANYO_REDIS_TIMEOUT_MS ends a read before.",
    )
    store_history: int = Field(
        default=500,
        ge=1,
        le=10_000,
        description="Events kept for one user; the oldest are deleted beyond it, and are recommended again.",
    )
    max_event_ahead_seconds: int = Field(
        default=300,
        ge=0,
        le=31_536_000,
        description="How far ahead of this machine's clock the timestamp of an event may lie, for clocks that differ; "
        "beyond it the append is refused with 422. Events from the future would push out what happens meanwhile.",
    )
