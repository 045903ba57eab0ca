"""Elements of dashboards: panels, rows and boards as data, and the queries that panels share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

RULES = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "rules" / "recording.yml"

# Row of panels that have data only where the model runs on a GPU.
GPU_ROW = "GPU (only where the model runs on one)"

S = 'job=~"$job",instance=~"$instance"'
USERS = f'{S},endpoint!~"/livez|/readyz|/metrics"'  # probes and scrapes are not users
STAGES = f'{S},endpoint=~"$endpoint"'
W = "[$__rate_interval]"

Kind = Literal["lines", "stacked", "number", "states", "heat", "rows"]
# The least value of each colour. A step at None is the colour of everything below the next one.
Steps = tuple[tuple[float | None, str], ...]


def target(record: str) -> float:
    """Return the value that a recording rule fixes, such as `anyo:latency_target:seconds`.

    Thresholds of panels are read from where alerts read them, so that there is one place to change.
    Raises ValueError where no rule of this name is a constant.
    """
    found = re.search(rf"record: {re.escape(record)}\n\s+expr: vector\(([0-9.]+)\)", RULES.read_text())
    if found is None:
        raise ValueError(f"{RULES.name} has no constant called {record}")
    return float(found.group(1))


@dataclass(frozen=True)
class Panel:
    """One panel: what it shows and why it matters, its unit, and its queries with their legends.

    `limits` are queries of limits: dashed, and on an axis of their own at the right, so that a far limit does not
    flatten the lines, unless they are `near`. `steps` colour numbers, and are dashed lines where lines are drawn; they
    do not stretch the axis. `top` is the end of the axis, `soft_top` an end that higher values push up. `words` replace
    values (of states): value, word, colour. `columns` are the names and units of the values of a table, one for each
    query.
    """

    title: str
    description: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    width: int = 8
    kind: Kind = "lines"
    limits: tuple[tuple[str, str], ...] = ()
    near: bool = False
    steps: Steps = ()
    top: float | None = None
    soft_top: float | None = None
    words: tuple[tuple[str, str, str], ...] = ()
    columns: tuple[tuple[str, str], ...] = ()
    height: int = 0


@dataclass(frozen=True)
class Row:
    """A titled row of panels."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """One dashboard; `name` is its file and its address in Grafana."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]
    by_endpoint: bool = False


@dataclass(frozen=True)
class Mark:
    """Marks on the time axis of every panel; `timed` where the value is the moment itself, in milliseconds."""

    name: str
    colour: str
    query: str
    title: str
    text: str
    timed: bool = False


def quantile(q: float, metric: str, where: str, *by: str) -> str:
    """Return a percentile over all replicas together: buckets are added up before it is taken. Absent without data."""
    buckets = f"sum by ({', '.join([*by, 'le'])}) (rate({metric}_bucket{{{where}}}{W}))"
    return f"(histogram_quantile({q}, {buckets}) >= 0)"


def whole_quantile(q: float, metric: str, where: str, *by: str) -> str:
    """Return a percentile of a count. Within a bucket a histogram interpolates, and no batch has .95 entries."""
    return f"ceil({quantile(q, metric, where, *by)})"


def rate(metric: str, where: str, *by: str) -> str:
    """Return events a second, added up over replicas and by the labels named."""
    grouped = f" by ({', '.join(by)})" if by else ""
    return f"sum{grouped} (rate({metric}{{{where}}}{W}))"


def request_quantile(q: float, where: str = USERS) -> str:
    """Return a percentile of whole requests by endpoint."""
    return quantile(q, "anyo_request_seconds", where, "endpoint")


def stage_quantile(q: float) -> str:
    """Return a percentile by stage."""
    return quantile(q, "anyo_stage_seconds", STAGES, "endpoint", "stage")


def mean(metric: str) -> str:
    """Return the mean of a histogram without labels over all replicas."""
    return f"{rate(metric + '_sum', S)} / {rate(metric + '_count', S)}"


def by_recipe(metric: str, where: str) -> str:
    """Return events a second by recipe, of a counter by artifact."""
    names = f'max by (job, instance, artifact, recipe) (label_join(anyo_artifact_info{{{S}}}, "artifact", "", "name"))'
    events = f"sum by (job, instance, artifact) (rate({metric}{{{where}}}{W}))"
    return f"sum by (recipe) ({events} * on (job, instance, artifact) group_left (recipe) {names})"


RECOMMEND = f'{S},endpoint="/recommend"'
GENERATIVE = f'{S},endpoint="/recommend/generative"'
BOTH_WAYS = f'{S},endpoint=~"/recommend|/recommend/generative"'
POPULAR = f'{S},source="popular"'
HITS = f'{S},result="hit"'
TAKEN = f'{S},hit="true"'
OVERLOAD = f'{S},reason!="too_long"'
FAILED = f'{USERS},status=~"5.."'
BY_STAGE = "{{endpoint}} {{stage}}"

# Ends of axes on which nothing may happen for days: without one Grafana draws a line of zeros below an axis to 100.
FEW_A_SECOND, FEW_WAITING, SHORT_TIME = 0.1, 10.0, 0.1

LATENCY_TARGET = target("anyo:latency_target:seconds")
ERROR_BUDGET = target("anyo:error_budget:ratio")
# Of a share of a limit: the second step is where the alerts begin (AnyoQueueNearLimit, AnyoFilesNearLimit).
NEAR_LIMIT: Steps = ((None, "green"), (0.6, "orange"), (0.8, "red"))
LATENCY_STEPS: Steps = ((None, "green"), (0.8 * LATENCY_TARGET, "orange"), (LATENCY_TARGET, "red"))
UP = (("0", "down", "red"), ("1", "up", "green"))

MARKS = (
    Mark("Restarts", "orange", f"process_start_time_seconds{{{S}}} * 1000", "Start of {{instance}}",
         "The process started.", timed=True),
    # Its first minute: a longer one would hide a second exchange soon after.
    Mark("Artifacts", "blue",
         f"count by (job, kind, name, version) (anyo_default_artifact_info{{{S}}}) unless "
         f"count by (job, kind, name, version) (anyo_default_artifact_info{{{S}}} offset 1m)",
         "{{name}} {{version}}", "The default {{kind}} artifact since then."),
)  # fmt: skip
