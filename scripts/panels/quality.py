"""Panels on the sources of answers, the caches and the store."""

from __future__ import annotations

from scripts.panels.base import HITS, POPULAR, TAKEN, UP, Board, Panel, Row, S, quantile, rate, whole_quantile

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
                    "popular"),), 12, top=1.0),
        )),
        Row("Generation", (
            Panel("Invalid generations", "Share of the texts that, as written, are no item: 0 along a trie.",
                  "percentunit",
                  ((f"{rate('anyo_invalid_generations_total', S, 'recipe')} / "
                    f"({rate('anyo_generated_texts_total', S, 'recipe')} > 0)", "{{recipe}}"),), 6, top=1.0),
            Panel("Grounding distance", "How far texts are from the items they are grounded to; 0: named as written.",
                  "none", ((quantile(0.5, "anyo_grounding_distance", S, "recipe"), "{{recipe}} p50"),
                           (quantile(0.95, "anyo_grounding_distance", S, "recipe"), "{{recipe}} p95")), 6),
            Panel("Generated tokens", "A second, those of all beams.", "suffix:tokens/s",
                  ((rate("anyo_generated_tokens_total", S, "recipe"), "{{recipe}}"),), 6),
            Panel("Items filled up", "A second: no text had reached them. A rise means beams that collapse or are few.",
                  "suffix:items/s", ((rate("anyo_filled_items_total", S, "recipe"), "{{recipe}}"),), 6),
        )),
        Row("Feedback", (
            Panel("Hit rate", "Of what was taken, the share that had been recommended, by artifact.", "percentunit",
                  ((f"{rate('anyo_feedback_total', TAKEN, 'artifact')} / "
                    f"({rate('anyo_feedback_total', S, 'artifact')} > 0)", "{{artifact}}"),), top=1.0),
            Panel("Feedback", "Reports a second, by artifact.", "reqps",
                  ((rate("anyo_feedback_total", S, "artifact"), "{{artifact}}"),)),
            Panel("Rank of what was taken: p50", "Where in the list it had stood.", "none",
                  ((whole_quantile(0.5, "anyo_feedback_rank", S, "artifact"), "{{artifact}}"),)),
        )),
        Row("Caches and store", (
            Panel("Cache hits", "Share of look-ups that were answered, of the caches that are in use.", "percentunit",
                  ((f"{rate('anyo_cache_requests_total', HITS, 'cache')} / "
                    f"({rate('anyo_cache_requests_total', S, 'cache')} > 0)", "{{cache}}"),), top=1.0),
            Panel("Store up", "0 where the last operation of that kind failed. read: requests with a user_id are "
                  "degraded; write: events are refused.", "none",
                  ((f"min by (instance, op) (anyo_store_up{{{S}}})", "{{instance}} {{op}}"),), kind="states", words=UP),
            Panel("Shared cache up", "0 where its last operation of that kind failed; 1 without one.", "none",
                  ((f"min by (instance, op) (anyo_cache_up{{{S}}})", "{{instance}} {{op}}"),), kind="states", words=UP),
            Panel("Store: operations", "A second, by kind.", "ops",
                  ((rate("anyo_store_seconds_count", S, "op"), "{{op}}"),)),
            Panel("Store: p50", "The usual operation.", "s",
                  ((quantile(0.5, "anyo_store_seconds", S, "op"), "{{op}}"),)),
            Panel("Store: p99", "What beyond ANYO_STORE_TIMEOUT_MS counts as missing.", "s",
                  ((quantile(0.99, "anyo_store_seconds", S, "op"), "{{op}}"),)),
        )),
        Row("Artifacts", (
            Panel("Loaded artifacts", "How many replicas serve which version.", "none",
                  ((f"count by (job, name, version, recipe) (anyo_artifact_info{{{S}}})", ""),), 16, "rows",
                  columns=(("replicas", "none"),)),
            Panel("Items in the index", "Of the default artifact, by replica: they should agree.", "none",
                  ((f"anyo_index_items{{{S}}}", "{{instance}}"),), kind="number", height=8),
        )),
    ),
)  # fmt: skip
