"""Panels on capacity: utilisation and distance to the limits."""

from __future__ import annotations

from scripts.panels.base import (
    GPU_ROW,
    NEAR_LIMIT,
    OVERLOAD,
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

CAPACITY = Board(
    "anyo-capacity",
    "anyo: capacity",
    "How near the limits are: queue, refusals, processor, memory, event loop.",
    rows=(
        Row("Load", (
            Panel("Replicas ready", "Of those that are scraped.", "none",
                  ((f"sum(anyo_ready{{{S}}})", "ready"), (f"count(up{{{S}}})", "scraped")), 6, "number", height=8),
            Panel("Queue, share of its limit", "Positions waiting; at 100 % requests get 429.", "percentunit",
                  ((f"anyo_queue_tokens{{{S}}} / anyo_queue_tokens_limit{{{S}}}", "{{instance}}"),), 9, top=1.0,
                  steps=NEAR_LIMIT),
            Panel("Queue: entries and positions", "All replicas together.", "none",
                  ((f"sum(anyo_queue_depth{{{S}}})", "entries"), (f"sum(anyo_queue_tokens{{{S}}})", "positions")), 9,
                  limits=((f"sum(anyo_queue_tokens_limit{{{S}}})", "limit of positions"),)),
            Panel("Refusals by reason", "A second; too_long is a request that never fits.", "reqps",
                  ((rate("anyo_rejected_total", S, "reason"), "{{reason}}"),)),
            Panel("Share refused for overload", "Of all requests of users.", "percentunit",
                  ((f"{rate('anyo_rejected_total', OVERLOAD)} / {rate('anyo_requests_total', USERS)}",
                    "refused"),), soft_top=0.01),
            Panel("Forward pass in progress", "Seconds it has been running; beyond ANYO_STALL_SECONDS liveness turns "
                  "red.", "s", ((f"anyo_forward_running_seconds{{{S}}}", "{{instance}}"),)),
        )),
        Row("Generative queue", (
            Panel("Generative queue, share of its limit", "Requests waiting; at 100 % they get 429.", "percentunit",
                  ((f"anyo_generative_queue_depth{{{S}}} / anyo_generative_queue_depth_limit{{{S}}}",
                    "{{instance}}"),), top=1.0, steps=NEAR_LIMIT),
            Panel("Generative queue: entries and positions", "All replicas together.", "none",
                  ((f"sum(anyo_generative_queue_depth{{{S}}})", "entries"),
                   (f"sum(anyo_generative_queue_tokens{{{S}}})", "positions")),
                  limits=((f"sum(anyo_generative_queue_tokens_limit{{{S}}})", "limit of positions"),)),
            Panel("Generated together", "Entries of a batch; only requests with the same beams and length share one.",
                  "none", ((mean("anyo_generative_batch_requests"), "mean"),
                           (whole_quantile(0.95, "anyo_generative_batch_requests", S), "p95"))),
        )),
        Row("Process", (
            Panel("Processor", "Cores in use, by replica.", "none",
                  ((rate("process_cpu_seconds_total", S, "instance"), "{{instance}}"),)),
            Panel("Memory", "Resident bytes, by replica; flat once warm and caches full.", "bytes",
                  ((f"process_resident_memory_bytes{{{S}}}", "{{instance}}"),)),
            Panel("Open files, share of the limit", "Mostly connections.", "percentunit",
                  ((f"process_open_fds{{{S}}} / process_max_fds{{{S}}}", "{{instance}}"),), top=1.0, steps=NEAR_LIMIT),
            Panel("Event-loop lag, p50", "How late the event loop usually comes back.", "s",
                  ((quantile(0.5, "anyo_event_loop_lag_seconds", S, "instance"), "{{instance}}"),)),
            Panel("Event-loop lag, p99", "Everything is at least this late at times, probes too.", "s",
                  ((quantile(0.99, "anyo_event_loop_lag_seconds", S, "instance"), "{{instance}}"),)),
            Panel("Uptime", "Since the process started.", "s",
                  ((f"time() - process_start_time_seconds{{{S}}}", "{{instance}}"),), kind="number", height=8),
        )),
        Row(GPU_ROW, (
            Panel("Device memory", "What PyTorch has taken, and what the device has.", "bytes",
                  ((f"anyo_device_memory_bytes{{{S}}}", "{{instance}}"),), 12,
                  limits=((f"anyo_device_memory_limit_bytes{{{S}}}", "{{instance}} limit"),)),
            Panel("Device memory, share", "Beyond 90 % the next large batch may not fit.", "percentunit",
                  ((f"anyo_device_memory_bytes{{{S}}} / anyo_device_memory_limit_bytes{{{S}}}", "{{instance}}"),), 12,
                  top=1.0, steps=((None, "green"), (0.9, "red"))),
        )),
    ),
)  # fmt: skip
