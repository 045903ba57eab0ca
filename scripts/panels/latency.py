"""Panels on request latency."""

from __future__ import annotations

from scripts.panels.base import (
    BOTH_WAYS,
    BY_STAGE,
    GENERATIVE,
    LATENCY_STEPS,
    RECOMMEND,
    STAGES,
    Board,
    Panel,
    Row,
    S,
    quantile,
    rate,
    request_quantile,
    stage_quantile,
)

LATENCY = Board(
    "anyo-latency",
    "anyo: latency",
    "How long requests take, by endpoint and by stage. Percentiles are taken of all replicas together.",
    by_endpoint=True,
    rows=(
        Row("Requests", (
            Panel("p50 of /recommend", "Half of the recommendations are faster.", "s",
                  ((request_quantile(0.5, RECOMMEND), ""),), 4, "number", steps=LATENCY_STEPS, height=8),
            Panel("p95 of /recommend", "One recommendation in twenty is slower.", "s",
                  ((request_quantile(0.95, RECOMMEND), ""),), 4, "number", steps=LATENCY_STEPS, height=8),
            Panel("p99 of /recommend", "One recommendation in a hundred is slower.", "s",
                  ((request_quantile(0.99, RECOMMEND), ""),), 4, "number", steps=LATENCY_STEPS, height=8),
            Panel("Where the time of /recommend goes", "Requests by how long they took: two humps are two kinds of "
                  "request (cache and model), a rising band is load.", "s",
                  ((rate("anyo_request_seconds_bucket", RECOMMEND, "le"), "{{le}}"),), 12, "heat"),
            Panel("p50 by endpoint", "The usual request.", "s", ((request_quantile(0.5), "{{endpoint}}"),), 12),
            Panel("p95 by endpoint", "The slow request.", "s", ((request_quantile(0.95), "{{endpoint}}"),), 12),
            Panel("p99 by endpoint", "The tail. The dashed lines are 80 % of the target of /recommend, and the target.",
                  "s",
                  ((request_quantile(0.99), "{{endpoint}}"),), 12, steps=LATENCY_STEPS),
            Panel("Endpoints relative to /recommend (p50)", "How many times as long as a dense recommendation: what "
                  "another way of answering costs.", "none",
                  ((f"{request_quantile(0.5)} / on () group_left () "
                    f"{quantile(0.5, 'anyo_request_seconds', RECOMMEND)}", "{{endpoint}}"),), 12),
            Panel("Tail: p99 over p50", "How uneven an endpoint is. A rise with p50 unchanged is a few long histories "
                  "or a noisy neighbour, not load.", "none",
                  ((f"{request_quantile(0.99)} / {request_quantile(0.5)}", "{{endpoint}}"),), 12),
            Panel("p99 of /recommend by replica", "A single slow replica disappears in the percentiles of all.", "s",
                  ((quantile(0.99, "anyo_request_seconds", RECOMMEND, "instance"), "{{instance}}"),), 12),
        )),
        Row("Dense against generative", (
            Panel("p50, both ways", "What generating the answer costs beside retrieving it.", "s",
                  ((request_quantile(0.5, BOTH_WAYS), "{{endpoint}}"),), 6),
            Panel("p95, both ways", "The slow request of each.", "s",
                  ((request_quantile(0.95, BOTH_WAYS), "{{endpoint}}"),), 6),
            Panel("Generative over dense", "How many times as long a generative answer takes.", "none",
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
                  ((stage_quantile(0.5), BY_STAGE),), 12),
            Panel("p95 by stage", "Which stage makes slow requests slow.", "s",
                  ((stage_quantile(0.95), BY_STAGE),), 12),
            Panel("p99 by stage", "A tail in queue is load, in forward the device, in history the store.", "s",
                  ((stage_quantile(0.99), BY_STAGE),), 12),
            Panel("Tail by stage: p99 over p50", "Which stage is uneven.", "none",
                  ((f"{stage_quantile(0.99)} / {stage_quantile(0.5)}", BY_STAGE),), 12),
            Panel("Seconds spent a second, by stage", "Where the time of all requests together goes.", "none",
                  ((rate("anyo_stage_seconds_sum", STAGES, "endpoint", "stage"), BY_STAGE),), 24, "stacked"),
        )),
    ),
)  # fmt: skip
