"""Logging: one JSON object a line on standard error, with the ids of the request and the trace it belongs to."""

from __future__ import annotations

import logging
import sys
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor

from service.context import request_id_of_this_task, trace_id_of_this_task


def _add_ids(logger: Any, method: str, event: EventDict) -> EventDict:
    if request_id := request_id_of_this_task.get():
        event.setdefault("request_id", request_id)
    if trace_id := trace_id_of_this_task.get():
        event.setdefault("trace_id", trace_id)
    return event


def _json(event: EventDict, **_: Any) -> str:
    return orjson.dumps(event, default=repr).decode()


def configure_logging(level: str, form: str) -> None:
    """Send our own lines and those of libraries the same way; `form` is json or console."""
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_ids,
    ]
    last: list[Processor]
    if form == "json":
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_json)]
    else:
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    # Libraries may warn; what they do step by step is not ours to log.
    for library in ("httpx", "httpcore", "urllib3", "asyncio", "filelock", "huggingface_hub", "transformers"):
        logging.getLogger(library).setLevel(logging.WARNING)
