"""Whether it is well, in one look, and what quality costs."""

from __future__ import annotations

from scripts.panels.base import (
    BOTH_WAYS,
    ERROR_BUDGET,
    FAILED,
    GENERATIVE,
    HITS,
    LATENCY_STEPS,
    NEAR_LIMIT,
    OVERLOAD,
    RECOMMEND,
    TAKEN,
    USERS,
    Board,
    Panel,
    Row,
    S,
    by_recipe,
    quantile,
    rate,
    request_quantile,
)

# Speeds at which the two alerts of the error budget begin.
BURN = ((None, "green"), (1.0, "yellow"), (6.0, "orange"), (14.4, "red"))
FAILED_SHOWN = (
    f"(sum(increase(anyo_requests_total{{{FAILED}}}[$__range])) or vector(0)) "
    f"/ sum(increase(anyo_requests_total{{{USERS}}}[$__range]))"
)
ANSWER_TOKENS = (
    f"{rate('anyo_generated_tokens_total', S, 'recipe')} / {rate('anyo_requests_total', GENERATIVE, 'recipe')}"
)

OVERVIEW = Board(
    "anyo-overview",
    "anyo: overview",
    "Whether the service is well: readiness, alerts, errors, latency, queue; and quality beside cost.",
    rows=(
        Row("Is it well?", (
            Panel("Replicas not ready", "Of those that are scraped. GET /readyz of the replica says why.", "none",
                  ((f"count(up{{{S}}}) - (sum(anyo_ready{{{S}}}) or vector(0))", ""),), 4, "number",
                  steps=((None, "green"), (1.0, "red"))),
            Panel("Alerts firing", "All of the chosen services; the table below has their names.", "none",
                  (('count(ALERTS{alertstate="firing",job=~"$job"}) or vector(0)', ""),), 4, "number",
                  steps=((None, "green"), (1.0, "red"))),
            Panel("p99 of /recommend", "Red beyond the target that the alert AnyoLatencyHigh holds it to.", "s",
                  ((request_quantile(0.99, RECOMMEND), ""),), 4, "number", steps=LATENCY_STEPS),
            Panel("Error budget burn rate", "Share of 5xx answers over that which the budget allows: at 1 "
                  "the budget of 30 days lasts 30 days.", "suffix:×",
                  (('max(job:anyo_errors:ratio_rate5m{job=~"$job"}) / scalar(anyo:error_budget:ratio)', ""),), 4,
                  "number", steps=BURN),
            Panel("Error budget left", "Of the time shown: what of the allowed 5xx answers has not been used.",
                  "percentunit", ((f"1 - {FAILED_SHOWN} / {ERROR_BUDGET:g}", ""),), 4, "number",
                  steps=((None, "red"), (0.0, "orange"), (0.25, "green"))),
            Panel("Fullest queue", "Positions waiting as a share of the limit, of the replica with most; at 100 % "
                  "requests get 429.", "percentunit",
                  ((f"max(anyo_queue_tokens{{{S}}} / anyo_queue_tokens_limit{{{S}}})", ""),), 4, "number",
                  steps=NEAR_LIMIT),
        )),
        Row("Traffic", (
            Panel("Requests", "Answered a second, all replicas together.", "reqps",
                  ((rate("anyo_requests_total", USERS), "all"),
                   (rate("anyo_requests_total", RECOMMEND), "/recommend"))),
            Panel("Latency of /recommend", "Half are faster than p50, one in a hundred is slower than p99. The dashed "
                  "lines are 80 % of the target and the target.", "s",
                  ((quantile(0.5, "anyo_request_seconds", RECOMMEND), "p50"),
                   (quantile(0.99, "anyo_request_seconds", RECOMMEND), "p99")), steps=LATENCY_STEPS),
            Panel("Not answered as asked", "Share of requests: failed (5xx) and refused for overload (429).",
                  "percentunit",
                  ((f"({rate('anyo_requests_total', FAILED)} or vector(0)) / {rate('anyo_requests_total', USERS)}",
                    "failed"),
                   (f"{rate('anyo_rejected_total', OVERLOAD)} / {rate('anyo_requests_total', USERS)}", "refused")),
                  soft_top=0.01),
            Panel("Firing alerts", "Empty while all is well; the runbook has a section for each.", "none",
                  (('sum by (job, alertname, severity) (ALERTS{alertstate="firing",job=~"$job"})', ""),), 12, "rows",
                  columns=(("replicas", "none"),)),
            Panel("Cache hits", "Share of look-ups that were answered: what the model does not have to compute.",
                  "percentunit", ((f"{rate('anyo_cache_requests_total', HITS, 'cache')} / "
                                   f"({rate('anyo_cache_requests_total', S, 'cache')} > 0)", "{{cache}}"),), 12,
                  top=1.0),
        )),
        Row("Quality beside cost", (
            Panel("By recipe", "Hit rate: of what was taken, the share that had been recommended (POST /feedback). "
                  "Processor seconds cannot be told apart by recipe; the time of a request can.", "none",
                  ((f"{by_recipe('anyo_feedback_total', TAKEN)} / ({by_recipe('anyo_feedback_total', S)} > 0)", ""),
                   (quantile(0.5, "anyo_request_seconds", BOTH_WAYS, "recipe"), ""),
                   (quantile(0.99, "anyo_request_seconds", BOTH_WAYS, "recipe"), ""),
                   (ANSWER_TOKENS, ""),
                   (rate("anyo_requests_total", BOTH_WAYS, "recipe"), "")), 24, "rows",
                  columns=(("hit rate", "percentunit"), ("p50", "s"), ("p99", "s"), ("tokens an answer", "none"),
                           ("requests", "reqps"))),
            Panel("Hit rate", "Of what was taken, the share that had been recommended, by recipe.", "percentunit",
                  ((f"{by_recipe('anyo_feedback_total', TAKEN)} / ({by_recipe('anyo_feedback_total', S)} > 0)",
                    "{{recipe}}"),), top=1.0),
            Panel("p50", "Of the same recipes, to be read beside the hit rate.", "s",
                  ((quantile(0.5, "anyo_request_seconds", BOTH_WAYS, "recipe"), "{{recipe}}"),)),
            Panel("Tokens an answer", "Generated for one answer, all beams together: what generation computes.",
                  "none", ((ANSWER_TOKENS, "{{recipe}}"),)),
        )),
    ),
)  # fmt: skip
