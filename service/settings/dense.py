"""Settings of the model's device and precision, and of dense batches, queues and caches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from service.settings.base import Section


class DenseSettings(Section):
    """Settings of the device, of dense inference and of its caches in memory."""

    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|cuda(:[0-9]{1,3})?)$",
        description="Where the model runs: cpu, cuda or cuda:1; a device that is not there stops the start.",
    )
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        default="fp32",
        description="Of the language models of artifacts of both kinds: fp32 gives the vectors and texts of training; "
        "bf16 halves their memory and is faster where the processor computes in it (AMX, avx512_bf16, a GPU); int8 "
        "keeps their maps in a quarter, for a processor with VNNI or AMX (others, and GPUs, refuse it). With either, "
        "items and texts with near-equal scores may change places: `python -m benchmarks.encoder.precision` says what "
        "an artifact loses. auto measures at the first load, takes bf16 where it is faster and else fp32, and logs "
        "which and why (event `precision`). bf16 or int8 that is slower than fp32 here is refused at the start.",
    )
    precision_forced: bool = Field(
        default=False,
        description="Take ANYO_PRECISION unmeasured, even where it is slower than fp32: for the memory it saves. It "
        "changes nothing for auto.",
    )
    share_backbone: bool = Field(
        default=True,
        description="On a processor in fp32, a generative artifact reads the weights of a dense one that was loaded "
        "before it and tuned from the same backbone by an adapter, and corrects what it reads. Off: it has a copy of "
        "its own, and writes a little faster.",
    )
    map_index: bool = Field(
        default=False,
        description="Leave the item vectors of an inverted file (ivf-fastscan, ivf-pq, ivf-sq) on disk, and read those "
        "that a search scores exactly; with ANYO_DEVICE=cpu also every dense model's tables of items, whose rows are "
        "read for a history. The files are then mapped: replace artifacts by whole folders, and never write into one "
        "that is served. Other kinds of index are read into memory as ever.",
    )
    lanes: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Dense forward passes that may run at the same time; 0 takes one for each core really available "
        "(quota too), at most four, and one on a GPU. Several narrow ones do more than a wide one.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Threads of one forward pass; 0 divides the available cores among the lanes, and gives all of them "
        "to a pass that runs alone while nothing waits.",
    )
    max_batch_tokens: int = Field(
        default=2048,
        ge=1,
        le=1_048_576,
        description="Most positions of one forward pass, padding counted where there is any; higher (16384) fills a "
        "GPU better. On a CPU a batch of several requests ends at 320 (fp32) or 640. A history that takes more is "
        "refused with 413.",
    )
    max_batch_requests: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="Requests of one forward pass; higher helps short histories on a GPU.",
    )
    max_batch_padding: float = Field(
        default=0.3,
        ge=0,
        lt=1,
        description="Largest share of padding in a batch of a model whose forward computes padding; lower makes "
        "batches smaller and purer, higher computes more for nothing.",
    )
    max_queued_tokens: int = Field(
        default=65_536,
        ge=1,
        le=67_108_864,
        description="Positions that may wait; beyond them a request gets 429 with Retry-After at once. "
        "Higher means longer waits under overload, lower means earlier refusals.",
    )
    max_queue_seconds: float = Field(
        default=1.0,
        ge=0,
        le=600,
        description="Time for which the device may be booked out; beyond it a request gets 429 at once, so that after "
        "an overload the next request is fast again. Never below one full batch; 0 leaves it to the positions alone.",
    )
    stall_seconds: float = Field(
        default=60.0,
        ge=1,
        le=3600,
        description="A forward pass that takes longer turns liveness and readiness red, so that an "
        "orchestrator restarts the process.",
    )
    user_cache_entries: int = Field(
        default=10_000,
        ge=0,
        le=10_000_000,
        description="User vectors kept, each dim × 4 bytes, taken when an artifact is loaded; a repeated "
        'history skips the model and answers with source "cache". 0 turns the cache off.',
    )
    reuse_mib: int = Field(
        default=0,
        ge=0,
        le=1_048_576,
        description="Memory in MiB for the keys and values of histories that were read, so that a user who comes back "
        "with one more item costs that item alone; about layers × 2 × width × 4 bytes a position (half in bf16, less "
        "where heads share keys). For title histories; 0 turns it off.",
    )
    reuse_block: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="With ANYO_REUSE_MIB: items by which the window over a history longer than the model reads moves "
        "at a time. With 1 every event moves it, and everything is read again; with 5, four events of five cost one "
        "item, and up to four of the oldest items that the model could read are left out.",
    )
    second_stage_ms: int = Field(
        default=2000,
        ge=1,
        le=600_000,
        description="Time that ranking again (`rerank`), and again that an explanation (`explain`), may take in "
        "/recommend; then the answer comes without it, and `degraded` says so.",
    )
    title_cache_entries: int = Field(
        default=4096,
        ge=0,
        le=1_000_000,
        description="Free titles kept in their read form; a session sends the same ones again and again. 0 "
        "turns it off.",
    )

    @model_validator(mode="after")
    def _dense_is_consistent(self) -> DenseSettings:
        if self.max_queued_tokens < self.max_batch_tokens:
            raise ValueError(
                f"max_queued_tokens ({self.max_queued_tokens}) is less than max_batch_tokens "
                f"({self.max_batch_tokens}): no batch could ever be full; raise the first or lower the second"
            )
        if self.precision == "int8" and self.device != "cpu":
            raise ValueError(
                f"precision int8 runs on the cpu only, and device is {self.device!r}; use auto or bf16 there"
            )
        return self
