"""Traces, where `ANYO_OTLP_ENDPOINT` asks for them: a span for each request with a child for each stage, sent over
OTLP/HTTP by a thread of its own.

OpenTelemetry is imported only then. A `traceparent` header (W3C) is honoured: the span belongs to the caller's
trace, and is recorded if the caller records. The SDK's own variables work too (OTEL_SERVICE_NAME,
OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, …).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from service.context import trace_id_of_this_task
from service.errors import StartError
from service.version import project_version

UNTRACED = frozenset({"/livez", "/readyz", "/metrics"})
SEND_TIMEOUT_S = 5
CLOSE_TIMEOUT_S = 3.0  # what is not sent by then is lost: a dead receiver must not hold up the end of a process
NS = 1_000_000_000


def open_tracing(endpoint: str) -> Tracing | None:
    """Return what makes spans, None for an empty endpoint; raises StartError where the extra is missing."""
    if not endpoint:
        return None
    try:
        return Tracing(endpoint)
    except ImportError as error:
        raise StartError(
            f"ANYO_OTLP_ENDPOINT is {endpoint!r}, and the extra for traces is not installed ({error}): "
            "pip install 'anyo[otel]', or leave it empty"
        ) from error


class Tracing:
    """Makes spans and sends them; `begin` a request's, `close` at the end of the process."""

    def __init__(self, endpoint: str) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = os.environ.get("OTEL_SERVICE_NAME", "anyo")
        resource = Resource.create({SERVICE_NAME: name, SERVICE_VERSION: project_version()})
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=SEND_TIMEOUT_S)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("anyo")
        self._propagator = TraceContextTextMapPropagator()
        self._trace = trace

    def begin(self, method: str, path: str, headers: Mapping[bytes, bytes], request_id: str) -> Span | None:
        """Begin the span of a request; None for probes and scrapes."""
        if path in UNTRACED:
            return None
        sent = {name: headers.get(name.encode(), b"").decode("latin-1") for name in ("traceparent", "tracestate")}
        span = self._tracer.start_span(
            method,
            context=self._propagator.extract({name: value for name, value in sent.items() if value}),
            kind=self._trace.SpanKind.SERVER,
            attributes={"http.request.method": method, "anyo.request_id": request_id},
        )
        trace_id_of_this_task.set(f"{span.get_span_context().trace_id:032x}")
        return Span(self, span, method)

    def stages(self, span: Any, seconds: Mapping[str, float], started_ns: int) -> None:
        """Add a child for each stage."""
        context = self._trace.set_span_in_context(span)
        for stage, duration in seconds.items():
            child = self._tracer.start_span(stage, context=context, start_time=started_ns)
            started_ns += int(duration * NS)
            child.end(started_ns)

    def failed(self, span: Any) -> None:
        """Mark a span as an error of ours."""
        span.set_status(self._trace.StatusCode.ERROR)

    def close(self) -> None:
        """Send what is left, for a few seconds at most. Blocks."""
        closing = threading.Thread(target=self._provider.shutdown, name="anyo-traces", daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT_S)


class Span:
    """The span of one request, begun when it arrived."""

    def __init__(self, tracing: Tracing, span: Any, method: str) -> None:
        self._tracing = tracing
        self._span = span
        self._method = method
        self._started_ns = time.time_ns()

    def end(self, endpoint: str, status: int, recipe: str, seconds: Mapping[str, float]) -> None:
        """End it, and add its stages, laid end to end from its beginning in the order in which they happened: their
        durations are measured, the gaps between them are not."""
        if self._span.is_recording():
            self._tracing.stages(self._span, seconds, self._started_ns)
            self._span.update_name(f"{self._method} {endpoint}")
            self._span.set_attributes(
                {"http.route": endpoint, "http.response.status_code": status, "anyo.recipe": recipe}
            )
            if status >= 500:
                self._tracing.failed(self._span)
        self._span.end()
