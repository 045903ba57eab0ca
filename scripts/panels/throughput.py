"""Panels on requests, responses and batch sizes."""

from __future__ import annotations

from scripts.panels.base import (
    ERROR_BUDGET,
    FEW_A_SECOND,
    USERS,
    Board,
    Panel,
    Row,
    S,
    mean,
    quantile,
    rate,
    whole_quantile,
)

THROUGHPUT = Board(
    "anyo-throughput",
    "anyo: throughput and batching",
    "What is asked and answered, and how full the batches are that the model computes.",
    rows=(
        Row("Requests", (
            Panel("Requests by endpoint", "Answered a second, all replicas together.", "reqps",
                  ((rate("anyo_requests_total", USERS, "endpoint"), "{{endpoint}}"),), 12),
            Panel("Requests by status", "499: the client left. 429: refused. 504: out of time.", "reqps",
                  ((rate("anyo_requests_total", USERS, "status"), "{{status}}"),), 12),
            Panel("Requests by recipe", "Which model answers; none: no model was asked.", "reqps",
                  ((rate("anyo_requests_total", USERS, "recipe"), "{{recipe}}"),), 12),
            Panel("Share of 5xx answers", "Over five minutes. The dashed lines are the error budget, and 14.4 "
                  "times it, where the fast alert begins.",
                  "percentunit",
                  (('job:anyo_errors:ratio_rate5m{job=~"$job"}', "{{job}}"),), 12, soft_top=0.001,
                  steps=((None, "green"), (ERROR_BUDGET, "orange"), (14.4 * ERROR_BUDGET, "red"))),
            Panel("Out of time and abandoned", "Requests answered with 504, and clients that did not wait.", "reqps",
                  ((rate("anyo_deadline_exceeded_total", S), "deadline"), (rate("anyo_cancelled_total", S), "left")),
                  12, soft_top=FEW_A_SECOND),
            Panel("Requests by replica", "Whether the balancer spreads them evenly.", "reqps",
                  ((rate("anyo_requests_total", USERS, "instance"), "{{instance}}"),), 12),
        )),
        Row("Batches", (
            Panel("Entries of a batch", "A free device takes what is there: batches grow with load.", "none",
                  ((mean("anyo_batch_requests"), "mean"), (whole_quantile(0.95, "anyo_batch_requests", S), "p95")),
                  limits=((f"max(anyo_batch_requests_limit{{{S}}})", "limit"),)),
            Panel("Positions of a batch", "Positions computed; what a forward pass costs.", "short",
                  ((mean("anyo_batch_tokens"), "mean"), (whole_quantile(0.95, "anyo_batch_tokens", S), "p95")),
                  limits=((f"max(anyo_batch_tokens_limit{{{S}}})", "limit"),)),
            Panel("Share of padding", "Positions computed for nothing.", "percentunit",
                  ((mean("anyo_batch_padding_ratio"), "mean"),
                   (quantile(0.95, "anyo_batch_padding_ratio", S), "p95")), soft_top=0.1),
            Panel("Forward passes", "Batches a second.", "suffix:batches/s",
                  ((rate("anyo_batch_requests_count", S), "batches"),)),
            Panel("Entries computed", "Lower than the requests: caches and identical requests share.",
                  "suffix:entries/s", ((rate("anyo_batch_requests_sum", S), "entries"),)),
            Panel("Positions computed", "Padding counts where the model computes it; the fast forward does not.",
                  "suffix:positions/s",
                  ((rate("anyo_batch_tokens_sum", S), "positions"),)),
        )),
    ),
)  # fmt: skip
