"""Content of the Grafana dashboards: panels as data, with the queries that fill them.

`scripts/dashboards.py` turns them into JSON. Every query is asked of a real Prometheus in the tests, so a
panel can be shipped only once something gives it data. To add one: a `Panel` in a `Row`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Row of panels that have data only where the model runs on a GPU.
GPU_ROW = "GPU (only where the model runs on one)"

S = 'job=~"$job",instance=~"$instance"'
USERS = f'{S},endpoint!~"/livez|/readyz|/metrics"'  # probes and scrapes are not users
STAGES = f'{S},endpoint=~"$endpoint"'
W = "[$__rate_interval]"

Kind = Literal["lines", "stacked", "number", "heat", "rows"]


@dataclass(frozen=True)
class Panel:
    """One panel: what it shows and why it matters, its unit, and its queries with their legends."""

    title: str
    description: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    width: int = 8
    kind: Kind = "lines"


@dataclass(frozen=True)
class Row:
    """A titled row of panels."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """One dashboard; `name` is its file and its address in Grafana."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]
    by_endpoint: bool = False


def quantile(q: float, metric: str, where: str, *by: str) -> str:
    """Return a percentile over all replicas together: buckets are added up before it is taken."""
    return f"histogram_quantile({q}, sum by ({', '.join([*by, 'le'])}) (rate({metric}_bucket{{{where}}}{W})))"


def rate(metric: str, where: str, *by: str) -> str:
    """Return events a second, added up over replicas and by the labels named."""
    grouped = f" by ({', '.join(by)})" if by else ""
    return f"sum{grouped} (rate({metric}{{{where}}}{W}))"


def request_quantile(q: float, where: str = USERS) -> str:
    """Return a percentile of whole requests by endpoint."""
    return quantile(q, "anyo_request_seconds", where, "endpoint")


def stage_quantile(q: float) -> str:
    """Return a percentile by stage."""
    return quantile(q, "anyo_stage_seconds", STAGES, "endpoint", "stage")


def mean(metric: str) -> str:
    """Return the mean of a histogram without labels over all replicas."""
    return f"{rate(metric + '_sum', S)} / {rate(metric + '_count', S)}"


RECOMMEND = f'{S},endpoint="/recommend"'
GENERATIVE = f'{S},endpoint="/recommend/generative"'
BOTH_WAYS = f'{S},endpoint=~"/recommend|/recommend/generative"'
POPULAR = f'{S},source="popular"'
HITS = f'{S},result="hit"'
TAKEN = f'{S},hit="true"'
OVERLOAD = f'{S},reason!="too_long"'
BY_STAGE = "{{endpoint}} {{stage}}"

LATENCY = Board(
    "anyo-latency",
    "anyo: latency",
    "How long requests take, by endpoint and by stage. Percentiles are taken of all replicas together.",
    by_endpoint=True,
    rows=(
        Row("Requests", (
            Panel("p50 of /recommend", "Half of the recommendations are faster.", "s",
                  ((request_quantile(0.5, RECOMMEND), ""),), 4, "number"),
            Panel("p95 of /recommend", "One recommendation in twenty is slower.", "s",
                  ((request_quantile(0.95, RECOMMEND), ""),), 4, "number"),
            Panel("p99 of /recommend", "One recommendation in a hundred is slower.", "s",
                  ((request_quantile(0.99, RECOMMEND), ""),), 4, "number"),
            Panel("Where the time of /recommend goes", "Requests by how long they took: two humps are two kinds of "
                  "request (cache and model), a rising band is load.", "s",
                  ((rate("anyo_request_seconds_bucket", RECOMMEND, "le"), "{{le}}"),), 12, "heat"),
            Panel("p50 by endpoint", "The usual request.", "s", ((request_quantile(0.5), "{{endpoint}}"),)),
            Panel("p95 by endpoint", "The slow request.", "s", ((request_quantile(0.95), "{{endpoint}}"),)),
            Panel("p99 by endpoint", "The tail, and the target that alerts hold it to.", "s",
                  ((request_quantile(0.99), "{{endpoint}}"), ("anyo:latency_target:seconds", "target"))),
            Panel("Endpoints relative to /recommend (p50)", "How many times as long as a dense recommendation: what "
                  "another way of answering costs.", "none",
                  ((f"{request_quantile(0.5)} / on () group_left () "
                    f"{quantile(0.5, 'anyo_request_seconds', RECOMMEND)}", "{{endpoint}}"),)),
            Panel("Tail: p99 over p50", "How uneven an endpoint is. A rise with p50 unchanged is a few long histories "
                  "or a noisy neighbour, not load.", "none",
                  ((f"{request_quantile(0.99)} / {request_quantile(0.5)}", "{{endpoint}}"),)),
            Panel("p99 of /recommend by replica", "A single slow replica disappears in the percentiles of all.", "s",
                  ((quantile(0.99, "anyo_request_seconds", RECOMMEND, "instance"), "{{instance}}"),)),
        )),
        Row("Dense against generative", (
            Panel("p50, both ways", "What writing the answer costs beside looking it up.", "s",
                  ((request_quantile(0.5, BOTH_WAYS), "{{endpoint}}"),), 6),
            Panel("p95, both ways", "The slow request of each.", "s",
                  ((request_quantile(0.95, BOTH_WAYS), "{{endpoint}}"),), 6),
            Panel("Generative over dense (p50)", "How many times as long a written answer takes.", "none",
                  ((f"{quantile(0.5, 'anyo_request_seconds', GENERATIVE)} / "
                    f"{quantile(0.5, 'anyo_request_seconds', RECOMMEND)}", "p50"),
                   (f"{quantile(0.95, 'anyo_request_seconds', GENERATIVE)} / "
                    f"{quantile(0.95, 'anyo_request_seconds', RECOMMEND)}", "p95")), 6),
            Panel("One pass of generation", "How long it holds the device: what a dense request waits for it at most.",
                  "s", ((quantile(0.5, "anyo_generative_pass_seconds", S), "p50"),
                        (quantile(0.99, "anyo_generative_pass_seconds", S), "p99")), 6),
        )),
        Row("Stages of $endpoint", (
            Panel("p50 by stage", "history: the store. assemble: positions put together. queue: waiting for the "
                  "device. forward: the model. search: the index. prefill, decode, ground: of what is written.", "s",
                  ((stage_quantile(0.5), BY_STAGE),)),
            Panel("p95 by stage", "Which stage makes slow requests slow.", "s", ((stage_quantile(0.95), BY_STAGE),)),
            Panel("p99 by stage", "A tail in queue is load, in forward the device, in history the store.", "s",
                  ((stage_quantile(0.99), BY_STAGE),)),
            Panel("Seconds spent a second, by stage", "Where the time of all requests together goes.", "none",
                  ((rate("anyo_stage_seconds_sum", STAGES, "endpoint", "stage"), BY_STAGE),), 12, "stacked"),
            Panel("Tail by stage: p99 over p50", "Which stage is uneven.", "none",
                  ((f"{stage_quantile(0.99)} / {stage_quantile(0.5)}", BY_STAGE),), 12),
        )),
    ),
)  # fmt: skip

THROUGHPUT = Board(
    "anyo-throughput",
    "anyo: throughput and batching",
    "What is asked and answered, and how full the batches are that the model computes.",
    rows=(
        Row("Requests", (
            Panel("Requests by endpoint", "Answered a second, all replicas together.", "reqps",
                  ((rate("anyo_requests_total", USERS, "endpoint"), "{{endpoint}}"),)),
            Panel("Requests by status", "499: the client left. 429: refused. 504: out of time.", "reqps",
                  ((rate("anyo_requests_total", USERS, "status"), "{{status}}"),)),
            Panel("Requests by recipe", "Which model answers; none: no model was asked.", "reqps",
                  ((rate("anyo_requests_total", USERS, "recipe"), "{{recipe}}"),)),
            Panel("Share of 5xx answers", "Over five minutes, beside the share that the error budget allows.",
                  "percentunit",
                  (('job:anyo_errors:ratio_rate5m{job=~"$job"}', "{{job}}"), ("anyo:error_budget:ratio", "budget"))),
            Panel("Out of time and abandoned", "Requests answered with 504, and clients that did not wait.", "reqps",
                  ((rate("anyo_deadline_exceeded_total", S), "deadline"), (rate("anyo_cancelled_total", S), "left"))),
            Panel("Requests by replica", "Whether the balancer spreads them evenly.", "reqps",
                  ((rate("anyo_requests_total", USERS, "instance"), "{{instance}}"),)),
        )),
        Row("Batches", (
            Panel("Entries of a batch", "A free device takes what is there: batches grow with load.", "none",
                  ((mean("anyo_batch_requests"), "mean"), (quantile(0.95, "anyo_batch_requests", S), "p95"),
                   (f"max(anyo_batch_requests_limit{{{S}}})", "limit"))),
            Panel("Positions of a batch", "Positions computed; what a forward pass costs.", "none",
                  ((mean("anyo_batch_tokens"), "mean"), (quantile(0.95, "anyo_batch_tokens", S), "p95"),
                   (f"max(anyo_batch_tokens_limit{{{S}}})", "limit"))),
            Panel("Share of padding", "Positions computed for nothing.", "percentunit",
                  ((mean("anyo_batch_padding_ratio"), "mean"),
                   (quantile(0.95, "anyo_batch_padding_ratio", S), "p95"))),
            Panel("Forward passes", "Batches a second.", "ops", ((rate("anyo_batch_requests_count", S), "batches"),)),
            Panel("Entries computed", "Lower than the requests: caches and identical requests share.", "ops",
                  ((rate("anyo_batch_requests_sum", S), "entries"),)),
            Panel("Positions computed", "Padding counts where the model computes it; the fast forward does not.", "ops",
                  ((rate("anyo_batch_tokens_sum", S), "positions"),)),
        )),
    ),
)  # fmt: skip

QUALITY = Board(
    "anyo-quality",
    "anyo: quality and data",
    "Where answers come from, what the caches and the store do, and what is loaded.",
    rows=(
        Row("Answers", (
            Panel("Answers by source", "popular: nothing usable was known of the user.", "reqps",
                  ((rate("anyo_answers_total", S, "source"), "{{source}}"),), 12, "stacked"),
            Panel("Share of popular answers", "A rise means histories that are not sent, not stored or not in the "
                  "catalog.", "percentunit",
                  ((f"{rate('anyo_answers_total', POPULAR)} / {rate('anyo_answers_total', S)}",
                    "popular"),), 12),
        )),
        Row("Generation", (
            Panel("Invalid generations", "Share of the texts that, as written, are no item: 0 along a trie.",
                  "percentunit",
                  ((f"{rate('anyo_invalid_generations_total', S, 'recipe')} / "
                    f"({rate('anyo_generated_texts_total', S, 'recipe')} > 0)", "{{recipe}}"),), 6),
            Panel("Grounding distance", "How far texts are from the items they are grounded to; 0: named as written.",
                  "none", ((quantile(0.5, "anyo_grounding_distance", S, "recipe"), "{{recipe}} p50"),
                           (quantile(0.95, "anyo_grounding_distance", S, "recipe"), "{{recipe}} p95")), 6),
            Panel("Generated tokens", "A second, those of all beams.", "ops",
                  ((rate("anyo_generated_tokens_total", S, "recipe"), "{{recipe}}"),), 6),
            Panel("Items filled up", "A second: no text had reached them. A rise means beams that collapse or are few.",
                  "ops", ((rate("anyo_filled_items_total", S, "recipe"), "{{recipe}}"),), 6),
        )),
        Row("Feedback", (
            Panel("Hit rate", "Of what was taken, the share that had been recommended, by artifact.", "percentunit",
                  ((f"{rate('anyo_feedback_total', TAKEN, 'artifact')} / "
                    f"({rate('anyo_feedback_total', S, 'artifact')} > 0)", "{{artifact}}"),)),
            Panel("Feedback", "Reports a second, by artifact.", "reqps",
                  ((rate("anyo_feedback_total", S, "artifact"), "{{artifact}}"),)),
            Panel("Rank of what was taken: p50", "Where in the list it had stood.", "none",
                  ((quantile(0.5, "anyo_feedback_rank", S, "artifact"), "{{artifact}}"),)),
        )),
        Row("Caches and store", (
            Panel("Cache hits", "Share of look-ups that were answered, of the caches that are in use.", "percentunit",
                  ((f"{rate('anyo_cache_requests_total', HITS, 'cache')} / "
                    f"({rate('anyo_cache_requests_total', S, 'cache')} > 0)", "{{cache}}"),)),
            Panel("Store up", "0 where the last operation of that kind failed. read: requests with a user_id are "
                  "degraded; write: events are refused.", "none",
                  ((f"min by (instance, op) (anyo_store_up{{{S}}})", "{{instance}} {{op}}"),)),
            Panel("Shared cache up", "0 where its last operation of that kind failed; 1 without one.", "none",
                  ((f"min by (instance, op) (anyo_cache_up{{{S}}})", "{{instance}} {{op}}"),)),
            Panel("Store: operations", "A second, by kind.", "ops",
                  ((rate("anyo_store_seconds_count", S, "op"), "{{op}}"),)),
            Panel("Store: p50", "The usual operation.", "s",
                  ((quantile(0.5, "anyo_store_seconds", S, "op"), "{{op}}"),), 12),
            Panel("Store: p99", "What beyond ANYO_STORE_TIMEOUT_MS counts as missing.", "s",
                  ((quantile(0.99, "anyo_store_seconds", S, "op"), "{{op}}"),), 12),
        )),
        Row("Artifacts", (
            Panel("Loaded artifacts", "How many replicas serve which version.", "none",
                  ((f"count by (job, name, version, recipe) (anyo_artifact_info{{{S}}})", ""),), 16, "rows"),
            Panel("Items in the index", "Of the default artifact, by replica: they should agree.", "none",
                  ((f"anyo_index_items{{{S}}}", "{{instance}}"),)),
        )),
    ),
)  # fmt: skip

CAPACITY = Board(
    "anyo-capacity",
    "anyo: capacity",
    "How near the limits are: queue, refusals, processor, memory, event loop.",
    rows=(
        Row("Load", (
            Panel("Replicas ready", "Of those that are scraped.", "none",
                  ((f"sum(anyo_ready{{{S}}})", "ready"), (f"count(up{{{S}}})", "scraped")), 6, "number"),
            Panel("Queue, share of its limit", "Positions waiting; at 100 % requests get 429.", "percentunit",
                  ((f"anyo_queue_tokens{{{S}}} / anyo_queue_tokens_limit{{{S}}}", "{{instance}}"),), 9),
            Panel("Queue: entries and positions", "All replicas together.", "none",
                  ((f"sum(anyo_queue_depth{{{S}}})", "entries"), (f"sum(anyo_queue_tokens{{{S}}})", "positions"),
                   (f"sum(anyo_queue_tokens_limit{{{S}}})", "limit")), 9),
            Panel("Refusals by reason", "A second; too_long is a request that never fits.", "reqps",
                  ((rate("anyo_rejected_total", S, "reason"), "{{reason}}"),)),
            Panel("Share refused for overload", "Of all requests of users.", "percentunit",
                  ((f"{rate('anyo_rejected_total', OVERLOAD)} / {rate('anyo_requests_total', USERS)}",
                    "refused"),)),
            Panel("Forward pass in progress", "Seconds it has been running; beyond ANYO_STALL_SECONDS liveness turns "
                  "red.", "s", ((f"anyo_forward_running_seconds{{{S}}}", "{{instance}}"),)),
        )),
        Row("Generative queue", (
            Panel("Generative queue, share of its limit", "Requests waiting; at 100 % they get 429.", "percentunit",
                  ((f"anyo_generative_queue_depth{{{S}}} / anyo_generative_queue_depth_limit{{{S}}}",
                    "{{instance}}"),)),
            Panel("Generative queue: entries and positions", "All replicas together.", "none",
                  ((f"sum(anyo_generative_queue_depth{{{S}}})", "entries"),
                   (f"sum(anyo_generative_queue_tokens{{{S}}})", "positions"),
                   (f"sum(anyo_generative_queue_tokens_limit{{{S}}})", "limit"))),
            Panel("Written together", "Entries of a batch; only requests with the same beams and length share one.",
                  "none", ((mean("anyo_generative_batch_requests"), "mean"),
                           (quantile(0.95, "anyo_generative_batch_requests", S), "p95"))),
        )),
        Row("Process", (
            Panel("Processor", "Cores in use, by replica.", "none",
                  ((rate("process_cpu_seconds_total", S, "instance"), "{{instance}}"),)),
            Panel("EncoderMemory", "Resident bytes, by replica; flat once warm and caches full.", "bytes",
                  ((f"process_resident_memory_bytes{{{S}}}", "{{instance}}"),)),
            Panel("Open files, share of the limit", "Mostly connections.", "percentunit",
                  ((f"process_open_fds{{{S}}} / process_max_fds{{{S}}}", "{{instance}}"),)),
            Panel("Event-loop lag, p50", "How late the event loop usually comes back.", "s",
                  ((quantile(0.5, "anyo_event_loop_lag_seconds", S, "instance"), "{{instance}}"),)),
            Panel("Event-loop lag, p99", "Everything is at least this late at times, probes too.", "s",
                  ((quantile(0.99, "anyo_event_loop_lag_seconds", S, "instance"), "{{instance}}"),)),
            Panel("Uptime", "Since the process started.", "s",
                  ((f"time() - process_start_time_seconds{{{S}}}", "{{instance}}"),)),
        )),
        Row(GPU_ROW, (
            Panel("Device memory", "What PyTorch has taken, and what the device has.", "bytes",
                  ((f"anyo_device_memory_bytes{{{S}}}", "{{instance}}"),
                   (f"anyo_device_memory_limit_bytes{{{S}}}", "{{instance}} limit")), 12),
            Panel("Device memory, share", "Beyond 90 % the next large batch may not fit.", "percentunit",
                  ((f"anyo_device_memory_bytes{{{S}}} / anyo_device_memory_limit_bytes{{{S}}}", "{{instance}}"),), 12),
        )),
    ),
)  # fmt: skip

DASHBOARDS = (LATENCY, THROUGHPUT, QUALITY, CAPACITY)
