"""Replicas that are as healthy or as broken as a test wants: one HTTP server, a page of metrics for each.

Only for faults that cannot be had from a real service at will (a GPU that fills up, memory that grows by
half). The names and labels it shows are held to those of the real service by a test.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BORN = time.time() - 86_400

# Counters and the buckets of histograms by what they gain in a second …
GAINS = {
    'anyo_requests_total{endpoint="/recommend",recipe="anyo",status="200"}': 100.0,
    'anyo_requests_total{endpoint="/recommend",recipe="anyo",status="500"}': 0.0,
    'anyo_request_seconds_bucket{endpoint="/recommend",recipe="anyo",le="0.02"}': 100.0,
    'anyo_request_seconds_bucket{endpoint="/recommend",recipe="anyo",le="3.0"}': 100.0,
    'anyo_request_seconds_bucket{endpoint="/recommend",recipe="anyo",le="+Inf"}': 100.0,
    'anyo_rejected_total{reason="queue_full"}': 0.0,
    "anyo_deadline_exceeded_total": 0.0,
    'anyo_answers_total{source="model"}': 95.0,
    'anyo_answers_total{source="popular"}': 5.0,
    'anyo_event_loop_lag_seconds_bucket{le="0.001"}': 4.0,
    'anyo_event_loop_lag_seconds_bucket{le="0.5"}': 4.0,
    'anyo_event_loop_lag_seconds_bucket{le="+Inf"}': 4.0,
}
# … and gauges by their value.
VALUES = {
    "anyo_ready": 1.0,
    'anyo_store_up{op="read"}': 1.0,
    'anyo_store_up{op="write"}': 1.0,
    'anyo_store_up{op="list"}': 1.0,
    'anyo_cache_up{op="read"}': 1.0,
    'anyo_cache_up{op="write"}': 1.0,
    "anyo_queue_tokens": 500.0,
    "anyo_queue_tokens_limit": 65_536.0,
    "anyo_forward_running_seconds": 0.01,
    "anyo_device_memory_bytes": 20e9,
    "anyo_device_memory_limit_bytes": 80e9,
    'anyo_artifact_info{name="shop",version="1",recipe="anyo"}': 1.0,
    "process_resident_memory_bytes": 1e9,
    "process_start_time_seconds": BORN,
    "process_open_fds": 60.0,
    "process_max_fds": 1024.0,
}


class Replica:
    """One page of metrics; counters go on from where they are when their pace changes."""

    def __init__(self) -> None:
        self.up = True
        self.young = False  # starts anew all the time
        self._lock = threading.Lock()
        self._gains = dict(GAINS)
        self._values = dict(VALUES)
        self._counted = dict.fromkeys(GAINS, 1000.0)
        self._since = time.monotonic()

    def change(self, series: Mapping[str, float | None]) -> None:
        """Set paces and values from now on; None takes a series away."""
        with self._lock:
            self._count()
            for name, value in series.items():
                kind = self._gains if name in GAINS else self._values
                if value is None:
                    kind.pop(name, None)
                else:
                    kind[name] = value

    def heal(self) -> None:
        """Be healthy again."""
        self.up, self.young = True, False
        with self._lock:
            self._count()
            self._gains, self._values = dict(GAINS), dict(VALUES)

    def page(self) -> str:
        """What a scrape gets."""
        with self._lock:
            self._count()
            shown = {**{name: self._counted[name] for name in self._gains}, **self._values}
        if self.young:
            shown["process_start_time_seconds"] = time.time()
        return "".join(f"{name} {value}\n" for name, value in shown.items())

    def _count(self) -> None:
        now = time.monotonic()
        for name, gain in self._gains.items():
            self._counted[name] += gain * (now - self._since)
        self._since = now


class Exporter:
    """Serves replicas on 127.0.0.1, each under a path of its own."""

    def __init__(self, replicas: Mapping[str, Replica]) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # a connection is kept between scrapes

            def do_GET(self) -> None:
                replica = replicas[self.path.strip("/")]
                body = replica.page().encode()
                self.send_response(200 if replica.up else 503)
                self.send_header("content-type", "text/plain; version=0.0.4")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
