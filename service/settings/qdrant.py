"""Settings of a Qdrant engine that searches instead of the artifacts' own indexes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr

from service.settings.addresses import PORTS, AddressError, split
from service.settings.base import Section

EMBEDDED, FOLDER = ":memory:", "file://"
FORMS = "http://HOST:PORT, https://HOST:PORT, file:///FOLDER or :memory:"


def _checked(url: str) -> str:
    if url in ("", EMBEDDED) or (url.startswith(FOLDER) and len(url) > len(FOLDER) and url.isprintable()):
        return url
    try:
        address = split(url)
    except AddressError as error:
        raise ValueError(f"{error}; it is {FORMS}") from None
    if address.scheme not in PORTS or not address.host:
        raise ValueError(f"it is not {FORMS}")
    if address.port is None:
        raise ValueError("it names no port; that of a Qdrant server is 6333")
    if address.user is not None or address.password is not None:
        raise ValueError("it holds a user name or a password; the key of the engine is ANYO_QDRANT_API_KEY")
    if "?" in address.rest:
        raise ValueError("it holds parameters behind '?', and there are none")
    return url.rstrip("/")


class QdrantSettings(Section):
    """Settings of the engine, and of how it is asked."""

    qdrant_url: Annotated[str, AfterValidator(_checked)] = Field(
        default="",
        description="Where a Qdrant server (1.17 or later) is that finds items instead of the artifacts' own indexes: "
        "http://HOST:PORT or https://HOST:PORT; for a trial without a server :memory: or file:///FOLDER, which one "
        "process may use. The extra `qdrant` must be installed. Item vectors stay in mapped files: replace artifacts "
        "by whole folders. Empty: the index of each artifact is searched.",
    )
    qdrant_api_key: SecretStr | None = Field(
        default=None,
        description="Key of the Qdrant server, which may make, fill and delete collections. It is never logged; over "
        "http:// it is sent unencrypted.",
    )
    qdrant_timeout_ms: int = Field(
        default=500,
        ge=1,
        le=60_000,
        description="Longest wait for one search of the Qdrant server; then it counts as away.",
    )
    qdrant_effort: int = Field(
        default=0,
        ge=0,
        le=65_536,
        description="Candidates that a search of the Qdrant server looks at (`hnsw_ef`); higher finds more and takes "
        "longer, 0 leaves it to the server.",
    )
    qdrant_exact: bool = Field(
        default=False,
        description="Have the Qdrant server look at every item: answers are those of exact search.",
    )
    qdrant_away: Literal["exact", "refuse"] = Field(
        default="exact",
        description="While the Qdrant server does not answer: exact answers by reading all item vectors here, which "
        "takes longer the more items there are; refuse answers 503 and turns readiness red until it is back.",
    )
    qdrant_least_recall: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Share of the ten best items of an artifact's golden users that its collection must find; an "
        "artifact whose collection finds less is refused.",
    )
