"""Makes the Grafana dashboards of deploy/grafana/dashboards from what is written here.

The panels are data (`scripts/panels/`), put together with Grafana's own typed builders. The JSON is
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

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

from scripts.panels import DASHBOARDS
from scripts.panels.base import MARKS, Board, Kind, Panel

OUT = Path(__file__).resolve().parent.parent / "deploy" / "grafana" / "dashboards"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")

BUILDERS: dict[Kind, Callable[[], Any]] = {
    "lines": timeseries.Panel,
    "stacked": timeseries.Panel,
    "number": stat.Panel,
    "states": statetimeline.Panel,
    "heat": heatmap.Panel,
    "rows": table.Panel,
}


REFS = "ABCDEFGH"  # of queries, in their order; limits come after the others
NEUTRAL = ((None, "text"),)  # the colour of other text
WIDE = 12  # columns from which a table of the lines has room beside them
DASHED = {"fill": "dash", "dash": [8, 8]}


def build_panel(panel: Panel, number: int) -> Any:
    """Return Grafana's builder of a panel."""
    made = BUILDERS[panel.kind]().id(number).title(panel.title).description(panel.description).unit(panel.unit)
    made = made.datasource(SOURCE).height(panel.height or (4 if panel.kind == "number" else 8)).span(panel.width)
    if panel.kind in ("lines", "stacked"):
        made = drawn(panel, made)
    # Without steps Grafana has its own: everything from 80 on is red.
    if panel.steps or panel.kind == "number":
        steps = [models.Threshold(value, colour) for value, colour in panel.steps or NEUTRAL]
        made = made.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    if panel.words:
        named = {value: models.ValueMappingResult(text, colour) for value, text, colour in panel.words}
        made = made.mappings([models.ValueMap(named)])
    if panel.columns:
        made = in_columns(panel, made)
    for place, (expression, legend) in enumerate((*panel.queries, *panel.limits)):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(REFS[place])
        if panel.kind == "heat":
            query = query.format(prometheus_models.PromQueryFormat.HEATMAP)
        elif panel.kind == "rows":
            query = query.format(prometheus_models.PromQueryFormat.TABLE)
        made = made.with_target(query.instant() if panel.kind in ("number", "rows") else query.range())
    return made


def drawn(panel: Panel, made: Any) -> Any:
    """Return the panel with axes, limits on an axis of their own, dashed thresholds, and a table of many lines."""
    made = made.min(0).fill_opacity(40 if panel.kind == "stacked" else 5)
    made = made.show_points(common_models.VisibilityMode.NEVER)
    if panel.kind == "stacked":
        made = made.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if panel.top is not None:
        made = made.max(panel.top)
    if panel.soft_top is not None:
        made = made.axis_soft_max(panel.soft_top)
    if panel.steps:
        made = made.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)
        )
    for place in range(len(panel.queries), len(panel.queries) + len(panel.limits)):
        apart = {} if panel.near else {"custom.axisPlacement": "right"}
        dashed = {"custom.lineStyle": DASHED, "custom.fillOpacity": 0, "color": {"mode": "fixed", "fixedColor": "text"}}
        changes = [models.DynamicConfigValue(name, value) for name, value in {**apart, **dashed}.items()]
        made = made.override_by_query(REFS[place], changes)
    if panel.limits:
        # Lines of two axes may lie upon each other: numbers tell how far the limit is.
        listed = common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.LIST).show_legend(True)
        made = made.legend(listed.placement(common_models.LegendPlacement.BOTTOM).calcs(["lastNotNull"]))
    if panel.width >= WIDE and any("{{endpoint}}" in legend for _, legend in panel.queries):
        table = common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.TABLE).show_legend(True)
        made = made.legend(table.placement(common_models.LegendPlacement.RIGHT).calcs(["lastNotNull", "max"]))
    return made


def in_columns(panel: Panel, made: Any) -> Any:
    """Return a table with a row for each set of labels and a column for each query."""
    made = made.with_transformation(models.DataTransformerConfig("merge", options={}))
    hidden = {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": {}}
    made = made.with_transformation(models.DataTransformerConfig("organize", options=hidden))
    for place, (name, unit) in enumerate(panel.columns):
        # One query alone gives a column without its letter.
        field = "Value" if len(panel.columns) == 1 else f"Value #{REFS[place]}"
        changes = [models.DynamicConfigValue("displayName", name), models.DynamicConfigValue("unit", unit)]
        made = made.override_by_name(field, changes)
    return made


def marks() -> list[dict[str, Any]]:
    """Return the annotations; the builders have no words for what Prometheus adds to them."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    return [
        {
            "name": mark.name, "datasource": source, "enable": True, "hide": False, "iconColor": mark.colour,
            "expr": mark.query, "step": "15s", "titleFormat": mark.title, "textFormat": mark.text,
            "useValueForTime": "on" if mark.timed else False,
        }
        for mark in MARKS
    ]  # fmt: skip


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
    tree = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    tree["annotations"] = {"list": marks()}
    return json.dumps(tree, indent=1, sort_keys=True) + "\n"


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
