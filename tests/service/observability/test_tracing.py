"""Traces reach a real OTLP/HTTP receiver, belong to the caller's trace, and cost nothing while they are off."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service.errors import StartError
from service.observability.tracing import open_tracing
from testing.fake_parts import item_id
from testing.running import ROOT, process

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextlib.contextmanager
def receiver() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP/HTTP receiver on 127.0.0.1: its address, and the spans it was sent."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {each.key: each.value.string_value for each in resource.resource.attributes}
                assert names["service.name"] == "anyo"
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", spans
    finally:
        server.shutdown()
        server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_a_request_is_a_span_of_the_callers_trace_with_its_stages_below(tmp_path: Path) -> None:
    given = {"log_level": "debug", "poison": 13}
    with receiver() as (endpoint, spans), process(tmp_path, otlp_endpoint=endpoint, **given) as server:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
        answer = httpx.post(server.url + "/recommend", json={"history": [item_id(1)]}, headers=headers)
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-00", "x-request-id": "not recorded"}
        assert httpx.post(server.url + "/recommend", json={"history": [item_id(2)]}, headers=headers).is_success
        failed = httpx.post(server.url + "/recommend", json={"history": [item_id(13)]})
        httpx.get(server.url + "/readyz")
        httpx.get(server.url + "/nope", headers={"traceparent": "rubbish"})
        code, log = server.end()  # what is not sent yet is sent now
    assert code == 0 and failed.status_code == 500
    request, poisoned = [span for span in spans if span.name == "POST /recommend"]
    assert poisoned.status.code == 2 and not request.status.code, "an error of ours is one in the trace"
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    shown = attributes(request)
    assert (shown["anyo.request_id"], shown["http.response.status_code"]) == ("mine", 200)
    assert (shown["http.route"], shown["anyo.recipe"]) == ("/recommend", "fake-recipe")

    stages = [span for span in spans if span.parent_span_id == request.span_id]
    timings = answer.json()["timings_ms"]
    assert [span.name for span in stages] == ["assemble", "queue", "forward", "search"]
    for span in stages:
        milliseconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        assert milliseconds == pytest.approx(timings[span.name], abs=0.01)
        assert request.start_time_unix_nano <= span.start_time_unix_nano

    (unknown,) = [span for span in spans if span.name == "GET other"]
    assert unknown.trace_id.hex() != TRACE and not unknown.parent_span_id
    assert not [span for span in spans if "readyz" in span.name], "probes are not traced"
    lines = [json.loads(line) for line in log.splitlines()]
    assert {line["trace_id"] for line in lines if line.get("request_id") == "mine"} == {TRACE}


def test_a_receiver_that_is_away_costs_no_request_and_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with process(tmp_path, otlp_endpoint="http://127.0.0.1:9") as server:
        assert httpx.post(server.url + "/recommend", json={"history": [item_id(1)]}).status_code == 200
        started = time.monotonic()
        assert server.end()[0] == 0
        assert time.monotonic() - started < 20


def test_off_nothing_of_opentelemetry_s_sdk_is_imported() -> None:
    code = "import sys, service.service; print([n for n in sys.modules if n.startswith('opentelemetry.sdk')])"
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
    assert open_tracing("") is None


def test_without_the_extra_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(StartError, match=r"anyo\[otel\]"):
        open_tracing("http://127.0.0.1:4318")
