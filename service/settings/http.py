"""Settings of the HTTP server: where it listens, who may ask, limits of a request, and how it ends."""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_settings import NoDecode

from service.settings.addresses import check_host, check_origin
from service.settings.base import Section

Host = Annotated[str, Field(pattern=r"^(\*|[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}|[0-9A-Fa-f:]{2,45})$")]
KeyHash = Annotated[str, Field(pattern=r"^([A-Za-z0-9._-]{1,64}:)?[0-9a-f]{64}$")]
Origin = Annotated[str, AfterValidator(check_origin)]
EMPTY_KEY = hashlib.sha256(b"").hexdigest()


class HttpSettings(Section):
    """Settings of the HTTP server."""

    host: Annotated[str, AfterValidator(check_host)] = Field(
        default="127.0.0.1",
        description="Address to listen on; 0.0.0.0 lets other machines in, and without API keys there is no login.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one and prints it.")
    deadline_ms: int = Field(
        default=10_000,
        ge=1,
        le=600_000,
        description="Time a request may take; then it gets 504, and if it was still queued it is never computed.",
    )
    max_body_bytes: int = Field(
        default=1_048_576,
        ge=1024,
        le=268_435_456,
        description="Largest request body; a larger one gets 413 without being read to its end.",
    )
    max_loop_delay_ms: int = Field(
        default=100,
        ge=0,
        le=60_000,
        description="Time that a turn of the event loop may take, after one that took as long, before the requests "
        "behind it get 429 unread; higher lets everyone wait longer under overload. 0 turns it off.",
    )
    api_keys: Annotated[tuple[KeyHash, ...], NoDecode] = Field(
        default=(),
        description="SHA-256 of the keys that open the API, separated by commas, each with a name before it if you "
        "like (shop:3f9a…); `python -m service key` makes one. None: no key is asked for.",
    )
    admin_keys: Annotated[tuple[KeyHash, ...], NoDecode] = Field(
        default=(),
        description="The same for loading, unloading, activating and traffic, and for nothing else. None: on a "
        "loopback address and without API keys each start makes a key and prints it, elsewhere these are closed.",
    )
    rate_limit: float = Field(
        default=0.0,
        ge=0,
        le=1_000_000,
        description="Requests a second that one API key may send (without keys: all clients together); beyond them "
        "it gets 429 with Retry-After. 0 means no limit.",
    )
    rate_limit_burst: int = Field(
        default=20, ge=1, le=1_000_000, description="Requests that a key may send at once before the rate limits it."
    )
    cors_origins: Annotated[tuple[Origin, ...], NoDecode] = Field(
        default=(),
        description="Origins (https://shop.example) whose web pages may call the API from a browser, separated by "
        "commas. None: no other page may.",
    )
    allowed_hosts: Annotated[tuple[Host, ...], NoDecode] = Field(
        default=(),
        description="Names under which clients may ask, as they stand in the Host header without a port, separated by "
        "commas: those of a proxy, a container or a cluster (service, shop.example). Always allowed are loopback names "
        "and ANYO_HOST, and where that is no loopback address, every IP address. `*` allows all, also the names that "
        "foreign web pages have pointed here.",
    )
    drain_seconds: float = Field(
        default=15.0,
        ge=0,
        le=600,
        description="Time that requests in progress get after SIGTERM; what is left then is answered with 503.",
    )
    shutdown_delay_seconds: float = Field(
        default=0.0,
        ge=0,
        le=600,
        description="Time between SIGTERM (readiness goes red) and refusing connections, for load balancers "
        "that notice late.",
    )

    @field_validator("api_keys", "admin_keys")
    @classmethod
    def _of_no_empty_key(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        """Hashing a variable that is not set gives this hash, and everybody has that key."""
        if any(entry.endswith(EMPTY_KEY) for entry in entries):
            raise ValueError("the hash of an empty key")
        return entries

    @model_validator(mode="after")
    def _keys_of_one_kind(self) -> HttpSettings:
        both = {entry[-64:] for entry in self.api_keys} & {entry[-64:] for entry in self.admin_keys}
        if both:
            raise ValueError("one key stands in both api_keys and admin_keys; an admin key opens nothing else")
        return self
