"""Every setting of the service, each with its consequence; filled from `ANYO_…` variables and the command
line.

`docs/reference/settings.md` has a row for each of them, and a test holds the two together.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from index.border import TRACE
from service.addresses import check_host, check_origin, check_receiver
from service.setting_files import file_variables, read_setting_files
from service.stores.url import parse_cache_url, parse_store_url

PREFIX = "ANYO_"
UNSHOWN = ("store", "cache", "otlp_endpoint")  # may hold a password
LISTS = ("artifacts", "api_keys", "admin_keys", "allowed_hosts", "cors_origins")

Host = Annotated[str, Field(pattern=r"^(\*|[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}|[0-9A-Fa-f:]{2,45})$")]
KeyHash = Annotated[str, Field(pattern=r"^([A-Za-z0-9._-]{1,64}:)?[0-9a-f]{64}$")]
Origin = Annotated[str, AfterValidator(check_origin)]
EMPTY_KEY = hashlib.sha256(b"").hexdigest()


def _entries(name: str, text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",")) if text.strip() else ()
    if not all(parts):
        # A key whose variable is empty would silently be no key.
        raise ValueError(f"{name} ({PREFIX}{name.upper()}) has an empty entry between, before or behind its commas")
    return parts


def _store(url: str) -> str:
    parse_store_url(url)
    return url


def _cache(url: str) -> str:
    if url:
        parse_cache_url(url)
    return url


def _receiver(address: str) -> str:
    return check_receiver(address) if address else ""


class SettingsError(Exception):
    """A setting is wrong; the message names it, what was given and what is allowed."""


class Settings(BaseSettings):
    """The settings of one service process. An unknown variable that starts with `ANYO_` is refused."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=True)

    artifacts: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Artifact folders to serve, separated by commas in the variable; the first is the one "
        "that answers requests that name none. NAME=FOLDER serves one under another name than it was trained as.",
    )
    artifacts_root: Path | None = Field(
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
    host: Annotated[str, AfterValidator(check_host)] = Field(
        default="127.0.0.1",
        description="Address to listen on; 0.0.0.0 lets other machines in, and without API keys there is no login.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one and prints it.")
    store: Annotated[str, AfterValidator(_store)] = Field(
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
    store_idle_seconds: int = Field(
        default=0,
        ge=0,
        le=3_153_600_000,
        description="With Redis: a user to whom nothing was appended for so long is forgotten; 0 keeps users for ever.",
    )
    redis_timeout_ms: int = Field(
        default=50,
        ge=1,
        le=60_000,
        description="Longest wait for Redis in one read of a history or of the shared cache, connecting included; a "
        "request waits no longer, and goes on without. Lower it to 20 where Redis is near.",
    )
    redis_write_timeout_ms: int = Field(
        default=1000,
        ge=1,
        le=600_000,
        description="Longest wait for Redis to acknowledge an append or a deletion, its flush to the disk included; "
        "then it is answered with 503.",
    )
    redis_connections: int = Field(
        default=32,
        ge=1,
        le=10_000,
        description="Connections to Redis of each part (reads, writes, cache); operations beyond them wait for their "
        "turn, for at most ANYO_STORE_TIMEOUT_MS (cache: ANYO_REDIS_TIMEOUT_MS).",
    )
    breaker_failures: int = Field(
        default=5,
        ge=1,
        le=1_000_000,
        description="Failures of Redis in a row after which it is not asked at all, so that requests do not wait for "
        "time-outs; counted for reads, writes and cache apart.",
    )
    breaker_seconds: float = Field(
        default=1.0,
        ge=0.05,
        le=3600,
        description="Time between the probes (PING) of a Redis that is not asked; after one that succeeds it is asked "
        "again.",
    )
    cache: Annotated[str, AfterValidator(_cache)] = Field(
        default="",
        description="Redis URL of a cache that replicas share, behind each one's own memory; empty means memory "
        "only. It may be the store's Redis, but a memory limit that evicts belongs on one of its own.",
    )
    cache_vector_seconds: int = Field(
        default=86_400,
        ge=1,
        le=31_536_000,
        description="Time that a user vector stays in the shared cache.",
    )
    cache_result_seconds: int = Field(
        default=0,
        ge=0,
        le=31_536_000,
        description="Time that a whole answer stays in the shared cache, so that the same request need not even be "
        "searched; 0 shares no answers. Keep it short: within it an answer does not change.",
    )
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
        "items and texts with near-equal scores may change places: `python -m benchmarks.encoder.precision` says what an "
        "artifact loses. auto measures at the first load, takes bf16 where it is faster and else fp32, and logs which "
        "and why (event `precision`). bf16 or int8 that is slower than fp32 here is refused at the start.",
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
    max_loop_delay_ms: int = Field(
        default=100,
        ge=0,
        le=60_000,
        description="Time that a turn of the event loop may take, after one that took as long, before the requests "
        "behind it get 429 unread; higher lets everyone wait longer under overload. 0 turns it off.",
    )
    deadline_ms: int = Field(
        default=10_000,
        ge=1,
        le=600_000,
        description="Time a request may take; then it gets 504, and if it was still queued it is never computed.",
    )
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
        "more is refused with 413.",
    )
    generative_queued_requests: int = Field(
        default=64,
        ge=1,
        le=1_000_000,
        description="Generative requests that may wait; beyond them one gets 429 with Retry-After at once.",
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
        "these get 429: under load they are the first to be refused.",
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
    title_cache_entries: int = Field(
        default=4096,
        ge=0,
        le=1_000_000,
        description="Free titles kept in their read form; a session sends the same ones again and again. 0 "
        "turns it off.",
    )
    max_body_bytes: int = Field(
        default=1_048_576,
        ge=1024,
        le=268_435_456,
        description="Largest request body; a larger one gets 413 without being read to its end.",
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
    feedback_entries: int = Field(
        default=10_000,
        ge=0,
        le=10_000_000,
        description="Answers that are remembered, so that POST /feedback can name one; an older one is a 404. 0 "
        "turns feedback off.",
    )
    feedback_log: Path | None = Field(
        default=None,
        description="File that gets one JSON line for every answer and every feedback, for evaluation offline; it "
        "holds what was recommended, and grows until you rotate it.",
    )
    warmup_requests: int = Field(
        default=32,
        ge=0,
        le=10_000,
        description="Requests answered before readiness, made from the artifact's golden histories; 0 leaves "
        "the first user to pay for first-time costs.",
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

    @model_validator(mode="before")
    @classmethod
    def _known_and_split(cls, given: Any) -> Any:
        known = {PREFIX + name.upper() for name in cls.model_fields} | {TRACE} | file_variables(PREFIX)
        ours = sorted(name for name in os.environ if name.upper().startswith(PREFIX))
        unknown = [name for name in ours if name.upper() not in known]
        if unknown:
            raise ValueError(f"unknown variable {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        twice = [name for name in ours if sum(other.upper() == name.upper() for other in ours) > 1]
        if twice:
            raise ValueError(f"{' and '.join(twice)} are one setting; set one of them")
        for name, text in read_setting_files(PREFIX, os.environ).items() if isinstance(given, dict) else ():
            if not given.get(name):  # what the command line says goes first
                given[name] = text
        for name in LISTS if isinstance(given, dict) else ():
            if isinstance(given.get(name), str):
                given[name] = _entries(name, given[name])
        return given

    @field_validator("artifacts_root", "feedback_log", mode="before")
    @classmethod
    def _named(cls, path: Any) -> Any:
        """A path, or None for an empty one, which would otherwise mean the working folder."""
        text = str(path or "")
        if text != text.strip() or not text.isprintable():
            raise ValueError("it begins or ends with a blank, or holds a control character")
        return path or None

    @field_validator("artifacts_root")
    @classmethod
    def _is_there(cls, folder: Path | None) -> Path | None:
        if folder is not None and not folder.is_dir():
            raise ValueError("there is no such folder")
        return folder

    @field_validator("api_keys", "admin_keys")
    @classmethod
    def _of_no_empty_key(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        """Hashing a variable that is not set gives this hash, and everybody has that key."""
        if any(entry.endswith(EMPTY_KEY) for entry in entries):
            raise ValueError("the hash of an empty key")
        return entries

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        both = {entry[-64:] for entry in self.api_keys} & {entry[-64:] for entry in self.admin_keys}
        if both:
            raise ValueError("one key stands in both api_keys and admin_keys; an admin key opens nothing else")
        if self.max_queued_tokens < self.max_batch_tokens:
            raise ValueError(
                f"max_queued_tokens ({self.max_queued_tokens}) is less than max_batch_tokens "
                f"({self.max_batch_tokens}): no batch could ever be full; raise the first or lower the second"
            )
        if self.generative_queued_tokens < self.generative_batch_tokens:
            raise ValueError(
                f"generative_queued_tokens ({self.generative_queued_tokens}) is less than generative_batch_tokens "
                f"({self.generative_batch_tokens}): no batch could ever be full; raise the first or lower the second"
            )
        if self.store_timeout_ms > self.deadline_ms:
            raise ValueError(
                f"store_timeout_ms ({self.store_timeout_ms}) is more than deadline_ms ({self.deadline_ms}): "
                "a slow store would end every request with 504 before it could be answered without the store"
            )
        if self.precision == "int8" and self.device != "cpu":
            raise ValueError(
                f"precision int8 runs on the cpu only, and device is {self.device!r}; use auto or bf16 there"
            )
        if not self.store.startswith("sqlite:"):
            self._at_most_half("redis_timeout_ms", "store_timeout_ms")
            self._at_most_half("redis_write_timeout_ms", "deadline_ms")
        return self

    def _at_most_half(self, inner: str, outer: str) -> None:
        if 2 * getattr(self, inner) > getattr(self, outer):
            raise ValueError(
                f"{inner} ({getattr(self, inner)}) is more than half of {outer} ({getattr(self, outer)}), which "
                "would end the operation before it counts as a failure of Redis; raise the second or lower the first"
            )


NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})=(.+)", re.ASCII | re.DOTALL)


def named_folder(given: Path) -> tuple[str | None, Path]:
    """Return the name and the folder in `NAME=FOLDER`, or None and the folder where no name is given."""
    found = None if given.is_dir() else NAMED.fullmatch(str(given))
    return (None, given) if found is None else (found[1], Path(found[2]))


def load_settings(**given: Any) -> Settings:
    """Return the settings from the environment, overruled by `given` (None means not given).

    Raises SettingsError with one line a mistake: the setting, what was given, what is allowed.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("\n".join(_sentence(mistake) for mistake in error.errors())) from None


def _sentence(mistake: Any) -> str:
    message = mistake["msg"].removeprefix("Value error, ")
    if not mistake["loc"]:
        return str(message)
    name = str(mistake["loc"][0])
    if name in UNSHOWN:
        return f"setting {name} ({PREFIX}{name.upper()}): {message}"
    if name in ("api_keys", "admin_keys"):
        # Whoever put the key itself here must not find it in a log.
        if mistake["type"] == "value_error":
            return f"setting {name} ({PREFIX}{name.upper()}): it holds {message}; `python -m service key` makes a key"
        return (
            f"setting {name} ({PREFIX}{name.upper()}): an entry is not NAME:HASH or HASH, where HASH is 64 lower-case "
            "hexadecimal digits; `python -m service key` prints one"
        )
    return f"setting {name} ({PREFIX}{name.upper()}): {message}; given: {mistake['input']!r}"
