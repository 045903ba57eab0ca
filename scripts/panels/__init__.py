"""What the Grafana dashboards show: panels as data, with the queries that fill them.

`scripts/dashboards.py` turns them into JSON. Every query is asked of a real Prometheus in the tests, so a
panel can be shipped only once something gives it data. To add one: a `Panel` in a `Row`.
"""

from __future__ import annotations

from scripts.panels.capacity import CAPACITY
from scripts.panels.latency import LATENCY
from scripts.panels.overview import OVERVIEW
from scripts.panels.quality import QUALITY
from scripts.panels.throughput import THROUGHPUT

DASHBOARDS = (OVERVIEW, LATENCY, THROUGHPUT, QUALITY, CAPACITY)

__all__ = ["DASHBOARDS"]
