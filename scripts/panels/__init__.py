"""Panels of the Grafana dashboards as data, with their queries.

`scripts/dashboards.py` converts them to JSON. The tests run every query against a real Prometheus, so each panel must
have data. To add one, add a `Panel` to a `Row`.
"""

from __future__ import annotations

from scripts.panels.capacity import CAPACITY
from scripts.panels.latency import LATENCY
from scripts.panels.overview import OVERVIEW
from scripts.panels.quality import QUALITY
from scripts.panels.throughput import THROUGHPUT

DASHBOARDS = (OVERVIEW, LATENCY, THROUGHPUT, QUALITY, CAPACITY)

__all__ = ["DASHBOARDS"]
