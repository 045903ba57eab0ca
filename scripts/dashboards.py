"""Makes the Grafana dashboards of deploy/grafana/dashboards from what is written here.

The panels are data (`scripts/panels.py`), put together with Grafana's own typed builders. The JSON is
committed, so that Grafana and compose need no Python; a test fails when it differs from what this program
makes.

    python -m scripts.dashboards            write the files
    python -m scripts.dashboards --check    exit with 1 if a file is not what would be written
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

from scripts.panels import DASHBOARDS, Board, Kind, Panel

OUT = Path(__file__).resolve().parent.parent / "deploy" / "grafana" / "dashboards"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")

BUILDERS: dict[Kind, Callable[[], Any]] = {
    "lines": timeseries.Panel,
    "stacked": timeseries.Panel,
    "number": stat.Panel,
    "heat": heatmap.Panel,
    "rows": table.Panel,
}


def build_panel(panel: Panel, number: int) -> Any:
    """Return Grafana's builder of a panel."""
    made = BUILDERS[panel.kind]().id(number).title(panel.title).description(panel.description).unit(panel.unit)
    made = made.datasource(SOURCE).height(4 if panel.kind == "number" else 8).span(panel.width)
    if panel.kind in ("lines", "stacked"):
        made = made.min(0).fill_opacity(40 if panel.kind == "stacked" else 5)
        made = made.show_points(common_models.VisibilityMode.NEVER)
    if panel.kind == "stacked":
        made = made.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    for place, (expression, legend) in enumerate(panel.queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id("ABCDEFGH"[place])
        if panel.kind == "heat":
            query = query.format(prometheus_models.PromQueryFormat.HEATMAP)
        elif panel.kind == "rows":
            query = query.format(prometheus_models.PromQueryFormat.TABLE)
        made = made.with_target(query.instant() if panel.kind in ("number", "rows") else query.range())
    return made


def variable(name: str, label: str, query: str, first: str | None = None) -> dashboard.QueryVariable:
    """Return a choice of label values; all of them unless `first` names one."""
    made = dashboard.QueryVariable(name).label(label).query(query).datasource(SOURCE).multi(True).include_all(True)
    made = made.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    chosen = models.VariableOption(selected=True, text=[first or "All"], value=[first or "$__all"])
    return made.current(chosen)


def build(board: Board) -> str:
    """Return the JSON of a dashboard, as it is committed."""
    made = dashboard.Dashboard(board.title).uid(board.name).description(board.description).tags(["anyo"])
    made = made.time("now-30m", "now").refresh("10s").timezone("browser").editable()
    made = made.tooltip(models.DashboardCursorSync.CROSSHAIR)
    link = dashboard.DashboardLink("anyo").type(models.DashboardLinkType.DASHBOARDS).tags(["anyo"])
    made = made.link(link.keep_time(True).include_vars(True))
    made = made.with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    made = made.with_variable(variable("job", "Service", "label_values(anyo_ready, job)"))
    made = made.with_variable(variable("instance", "Replica", 'label_values(anyo_ready{job=~"$job"}, instance)'))
    if board.by_endpoint:
        asked = 'label_values(anyo_stage_seconds_count{job=~"$job"}, endpoint)'
        made = made.with_variable(variable("endpoint", "Endpoint (stages)", asked, first="/recommend"))
    number = 0
    for row in board.rows:
        number += 1
        made = made.with_row(dashboard.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            made = made.with_panel(build_panel(panel, number))
    return json.dumps(made.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def main() -> int:
    """Write the files, or compare them; returns the exit code."""
    stale = []
    OUT.mkdir(parents=True, exist_ok=True)
    for board in DASHBOARDS:
        path, text = OUT / f"{board.name}.json", build(board)
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(path.name)
    if stale:
        print(f"not what scripts/dashboards.py makes: {', '.join(stale)}; run python -m scripts.dashboards")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
