"""Settings of generative batches, queues and limits."""

from __future__ import annotations

from pydantic import Field, model_validator

from service.settings.base import Section


class GenerativeSettings(Section):
    """Settings of generative inference."""

    generative_batch_requests: int = Field(
        default=4,
        ge=1,
        le=4096,
        description="Requests that are written together, all with the same beams and length; higher answers more of "
        "them a second, makes each step longer, and with it the wait of a dense request: 16 suits a GPU.",
    )
    generative_batch_tokens: int = Field(
        default=8192,
        ge=1,
        le=1_048_576,
        description="Positions of a batch that is written: prompts, and what all beams may write. A request that takes "
        "more is refused with 413; candidates of `POST /rank` and `rerank` are scored in several batches instead.",
    )
    generative_queued_requests: int = Field(
        default=64,
        ge=1,
        le=1_000_000,
        description="Generative requests that may wait; beyond them one gets 429 with Retry-After at once. Candidates "
        "that are scored in several batches count once for each.",
    )
    generative_queued_tokens: int = Field(
        default=131_072,
        ge=1,
        le=67_108_864,
        description="The same in positions (prompts, and what all beams may write).",
    )
    generative_dense_waiting: int = Field(
        default=16,
        ge=0,
        le=1_000_000,
        description="Dense requests that may wait for the device while generative ones are still accepted; beyond them "
        "these get 429: under load they are the first to be refused. One that is explained counts once.",
    )
    generative_deadline_ms: int = Field(
        default=30_000,
        ge=1,
        le=600_000,
        description="Time a generative request or a comparison may take; then it gets 504 and its writing ends.",
    )
    generative_max_beams: int = Field(
        default=50,
        ge=1,
        le=1024,
        description="Most beams that a request may ask for; an artifact may allow fewer.",
    )
    generative_max_new_tokens: int = Field(
        default=64,
        ge=1,
        le=4096,
        description="Most tokens of a text that a request may ask for; an artifact may allow fewer.",
    )

    @model_validator(mode="after")
    def _generative_is_consistent(self) -> GenerativeSettings:
        if self.generative_queued_tokens < self.generative_batch_tokens:
            raise ValueError(
                f"generative_queued_tokens ({self.generative_queued_tokens}) is less than generative_batch_tokens "
                f"({self.generative_batch_tokens}): no batch could ever be full; raise the first or lower the second"
            )
        return self
