"""Ids of the request in progress, for log lines and traces of the task that handles it."""

from __future__ import annotations

from contextvars import ContextVar

request_id_of_this_task: ContextVar[str] = ContextVar("request_id_of_this_task", default="")
trace_id_of_this_task: ContextVar[str] = ContextVar("trace_id_of_this_task", default="")
