"""Every metric of the service: its name, its labels, its meaning. `docs/operations/metrics.md` has a row for each of
them.

Label values come from closed sets (routes, stages, loaded artifacts, …), never from what a client sends, so
the number of series is bounded. Children are bound once and kept, because looking one up by label costs more
than counting.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from service.observability.prometheus_adapter import QuickHistogram

SECONDS = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0,
)  # fmt: skip
STAGE_SECONDS = (0.00005, 0.0001, 0.0002, 0.0005, *SECONDS)
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
RANKS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)

NO_RECIPE = "none"  # label of requests that no model answers
SOURCES = ("model", "cache", "popular")
REASONS = (
    "queue_full", "queue_slow", "too_long", "search_full", "titles_full", "catalog_full", "rate_limited", "loop_behind",
    "generative_queue_full", "generative_after_dense",
)  # fmt: skip
DISTANCES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
CACHES = ("user_vector", "title", "states")
SHARED_CACHES = ("shared_vector", "shared_result")
REDIS_PARTS = ("store_read", "store_write", "store_list", "cache", "cache_write", "items_read", "items_write")
ITEM_STORE_OPERATIONS = ("write", "get", "changes")
ITEM_STATES = ("live", "hidden", "deleted")
STORE_PARTS = ("read", "write", "list")
CACHE_PARTS = ("read", "write")
SHADOW_RESULTS = ("compared", "dropped", "failed")
LOG_RESULTS = ("written", "dropped")
RERANK_RESULTS = ("ranked", "degraded")
BATCH_RESULTS = ("answered", "error")
EXPLAIN_RESULTS = ("computed", "cached", "degraded")
SENTENCE_RESULTS = ("generated", "absent", "degraded")


class Metrics:
    """The metrics of one process, in a registry of its own so that two apps in one test do not collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._requests()
        self._batches()
        self._generation()
        self._ranking()
        self._data()
        self._comparisons()
        # Series that exist from the start can be seen to be zero; one that is missing says nothing.
        for source in SOURCES:
            self.answers(source)
        for reason in REASONS:
            self.rejected(reason)
        for name in CACHES:
            for result in ("hit", "miss"):
                self.cache_requests(name, result)
        for name in SHARED_CACHES:
            for result in ("hit", "miss", "garbage", "unavailable"):
                self.cache_requests(name, result)
        for part in STORE_PARTS:
            self.store_up(part).set(1)  # until the first failure; a Redis that is away at the start is one
        for part in CACHE_PARTS:
            self.cache_up(part).set(1)
        self.item_store_up.set(1)
        for op in ITEM_STORE_OPERATIONS:
            self.item_store_seconds(op)
        for part in REDIS_PARTS:
            self.breaker_state(part)
            self.breaker_opened(part)

    def _requests(self) -> None:
        self.requests = self._counter(
            "requests_total", "Requests answered, by route, recipe and HTTP status.", "endpoint", "recipe", "status"
        )
        self.request_seconds = self._histogram(
            "request_seconds",
            "Seconds from the first byte of a request to the last of its answer.",
            SECONDS,
            "endpoint",
            "recipe",
        )
        self.stage_seconds = self._histogram(
            "stage_seconds", "Seconds of one request in one stage.", STAGE_SECONDS, "endpoint", "stage"
        )
        self.answers = self._counter("answers_total", "Recommendations answered, by where they came from.", "source")
        self.batch_entries = self._counter("batch_entries_total", "Entries of POST /recommend/batch.", "result")
        for result in BATCH_RESULTS:
            self.batch_entries(result)
        self.rejected = self._counter("rejected_total", "Requests refused before any work, by reason.", "reason")
        self.deadline_exceeded = self._counter("deadline_exceeded_total", "Requests that ran out of time (504).")
        self.cancelled = self._counter("cancelled_total", "Requests whose client left before the answer.")
        self.event_loop_lag = self._histogram(
            "event_loop_lag_seconds", "How much later than asked the event loop came back.", STAGE_SECONDS
        )

    def _batches(self) -> None:
        self.ready = self._gauge("ready", "1 while requests may be sent here (readiness), 0 otherwise.")
        self.forward_running_seconds = self._gauge(
            "forward_running_seconds", "Seconds that the forward pass in progress has been running, 0 without one."
        )
        self.queue_depth = self._gauge("queue_depth", "Entries waiting for the device.")
        self.queue_tokens = self._gauge("queue_tokens", "Positions waiting for the device.")
        self.title_queue_tokens = self._gauge("title_queue_tokens", "Positions of free titles waiting to be read.")
        self.queue_tokens_limit = self._gauge("queue_tokens_limit", "Positions that may wait.")
        self.batch_requests_limit = self._gauge("batch_requests_limit", "Entries that a batch may hold.")
        self.batch_tokens_limit = self._gauge(
            "batch_tokens_limit", "Positions that a batch may hold, padding counted where there is any."
        )
        self.batch_requests = self._histogram("batch_requests", "Entries in a forward pass.", COUNTS)
        self.batch_tokens = self._histogram("batch_tokens", "Positions that a forward pass computed.", TOKENS)
        self.batch_padding_ratio = self._histogram(
            "batch_padding_ratio", "Share of padding among them, 0 where none is computed.", SHARES
        )

    def _generation(self) -> None:
        self.generative_queue_depth = self._gauge("generative_queue_depth", "Generative entries waiting.")
        self.generative_queue_depth_limit = self._gauge("generative_queue_depth_limit", "Entries that may wait.")
        self.generative_queue_tokens = self._gauge("generative_queue_tokens", "Positions waiting to be written.")
        self.generative_queue_tokens_limit = self._gauge("generative_queue_tokens_limit", "Positions that may wait.")
        self.generative_batch_requests = self._histogram(
            "generative_batch_requests", "Entries that were written together.", COUNTS
        )
        self.generative_pass_seconds = self._histogram(
            "generative_pass_seconds", "Seconds for which one pass of generation held the device.", SECONDS
        )
        self.generated_tokens = self._counter("generated_tokens_total", "Tokens written, all beams together.", "recipe")
        self.generated_texts = self._counter("generated_texts_total", "Texts written.", "recipe")
        self.invalid_generations = self._counter(
            "invalid_generations_total", "Texts that, as written, are no item of the catalog.", "recipe"
        )
        self.grounding_distance = self._histogram(
            "grounding_distance", "How far a text was from the item that it was grounded to.", DISTANCES, "recipe"
        )
        self.filled_items = self._counter(
            "filled_items_total", "Items of answers that no text had reached, filled up by the method's rule.", "recipe"
        )

    def _ranking(self) -> None:
        self.rank_candidates = self._histogram(
            "rank_candidates", "Candidates that a request had scored, by recipe of the ranker.", COUNTS, "recipe"
        )
        self.reranks = self._counter("reranks_total", "Recommendations that were to be ranked again.", "result")
        self.explanations = self._counter("explanations_total", "Answers that were to be explained.", "result")
        self.sentences = self._counter("sentences_total", "Sentences that explanations were to have.", "result")
        for result in SENTENCE_RESULTS:
            self.sentences(result)
        for result in RERANK_RESULTS:
            self.reranks(result)
        for result in EXPLAIN_RESULTS:
            self.explanations(result)

    def _data(self) -> None:
        self.cache_requests = self._counter(
            "cache_requests_total", "Look-ups in a cache, by result.", "cache", "result"
        )
        self.store_up = self._gauge(
            "store_up",
            "1 while the store of histories does what is asked, 0 after a failure, by kind of operation.",
            "op",
        )
        self.cache_up = self._gauge(
            "cache_up", "1 while the shared cache answers, 0 after a failure; 1 without one.", "op"
        )
        self.store_seconds = self._histogram(
            "store_seconds", "Seconds of one operation of the store.", STAGE_SECONDS, "op"
        )
        self.breaker_state = self._gauge(
            "breaker_state", "Circuit breaker of a part of Redis: 0 closed, 1 half-open, 2 open.", "part"
        )
        self.breaker_opened = self._counter("breaker_opened_total", "Times that a circuit breaker opened.", "part")
        self.changed_items = self._gauge("changed_items", "Items that were ever changed, by state.", "state")
        self.item_delta = self._gauge("item_delta", "Added items that are not merged yet.")
        self.item_lag_seconds = self._gauge(
            "item_lag_seconds", "Seconds since changes of other replicas were last read to their end."
        )
        self.item_merge_seconds = self._histogram("item_merge_seconds", "Seconds of one merge of items.", SECONDS)
        self.item_store_up = self._gauge(
            "item_store_up", "1 while the item store does what is asked, 0 after a failure."
        )
        self.item_store_seconds = self._histogram(
            "item_store_seconds", "Seconds of one operation of the item store.", STAGE_SECONDS, "op"
        )
        self.index_items = self._gauge("index_items", "Items in the index of the default artifact.")
        self.index_recall = self._gauge(
            "index_recall", "Recall at 10 that the index of the default artifact states; 1 for exact search."
        )
        self.index_engine_up = self._gauge(
            "index_engine_up", "1 while the engine that finds items answers, 0 after a failure; 1 without one."
        )
        self.index_engine_up.set(1)
        self.index_engine_seconds = self._histogram(
            "index_engine_seconds", "Seconds of one call of the engine that finds items.", STAGE_SECONDS
        )
        self.index_engine_failures = self._counter(
            "index_engine_failures_total", "Searches that the engine did not answer."
        )
        self.index_engine_fallbacks = self._counter(
            "index_engine_fallbacks_total", "Searches that were answered by exact search here instead."
        )
        self.artifact_info = self._gauge("artifact_info", "1 for every loaded artifact.", "name", "version", "recipe")
        self.default_artifact_info = self._gauge(
            "default_artifact_info", "1 for the artifact that answers where none is named.", "kind", "name", "version"
        )
        self._defaults: dict[str, tuple[str, str]] = {}
        self.artifact_bytes = self._gauge("artifact_bytes", "Memory of all loaded artifacts, shared parts once.")
        self.artifact_bytes_limit = self._gauge("artifact_bytes_limit", "Memory that they may take; 0 means no limit.")

    def _comparisons(self) -> None:
        self.feedback = self._counter(
            "feedback_total", "Reports of what was taken, by whether it had been recommended.", "artifact", "hit"
        )
        self.feedback_rank = self._histogram(
            "feedback_rank", "Rank at which what was taken had been recommended.", RANKS, "artifact"
        )
        self.feedback_log_lines = self._counter("feedback_log_lines_total", "Lines for the feedback log.", "result")
        self.shadow = self._counter("shadow_total", "Answered requests that were offered to the shadow.", "result")
        self.shadow_overlap = self._histogram(
            "shadow_overlap_ratio", "Share of the served items that the shadow's answer holds too.", SHARES
        )
        self.shadow_seconds = self._histogram("shadow_seconds", "Seconds of one answer of the shadow.", SECONDS)
        for result in SHADOW_RESULTS:
            self.shadow(result)
        for result in LOG_RESULTS:
            self.feedback_log_lines(result)

    def _counter(self, name: str, help: str, *labels: str) -> Any:
        return self._bound(Counter(f"anyo_{name}", help, labels, registry=self.registry), labels)

    def _gauge(self, name: str, help: str, *labels: str) -> Any:
        return self._bound(Gauge(f"anyo_{name}", help, labels, registry=self.registry), labels)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Any:
        made = QuickHistogram(f"anyo_{name}", help, labels, buckets=buckets, registry=self.registry)
        return self._bound(made, labels)

    @staticmethod
    def _bound(metric: Any, labels: tuple[str, ...]) -> Any:
        """Return a metric without labels as it is, one with labels as a function from values to a kept child."""
        return cache(metric.labels) if labels else metric

    @staticmethod
    def forget(bound: Any, *values: str) -> None:
        """Stop showing one child of a metric with labels, such as that of an artifact which is no longer loaded."""
        bound.__wrapped__.__self__.remove(*values)
        bound.cache_clear()

    def show_default(self, kind: str, artifact: tuple[str, str] | None) -> None:
        """Show name and version of the default artifact of a kind, and no other; None where there is none now."""
        if self._defaults.get(kind) == artifact:
            return
        if (before := self._defaults.pop(kind, None)) is not None:
            self.forget(self.default_artifact_info, kind, *before)
        if artifact is not None:
            self._defaults[kind] = artifact
            self.default_artifact_info(kind, *artifact).set(1)

    def page(self) -> bytes:
        """Return the page for Prometheus."""
        return generate_latest(self.registry)

    def watch_device(self, device: str) -> None:
        """Show the memory of a CUDA device from now on; nothing is shown of the CPU."""
        self.registry.register(DeviceMemory(device))


class DeviceMemory(Collector):
    """Memory that PyTorch has allocated on a CUDA device, and the device's own, read at each scrape.

    Without a CUDA device, and before the first tensor is on it, there are no samples: asking must neither
    import torch nor start CUDA.
    """

    def __init__(self, device: str) -> None:
        self._device = device

    def collect(self) -> Iterable[Metric]:
        """Yield the two gauges, or nothing."""
        torch = sys.modules.get("torch")
        if torch is None or not self._device.startswith("cuda") or not torch.cuda.is_initialized():
            return
        yield GaugeMetricFamily(
            "anyo_device_memory_bytes",
            "Bytes of the device that PyTorch has taken.",
            value=torch.cuda.memory_reserved(self._device),
        )
        yield GaugeMetricFamily(
            "anyo_device_memory_limit_bytes",
            "Bytes that the device has.",
            value=torch.cuda.get_device_properties(self._device).total_memory,
        )
