"""A report as people read it: Markdown, and one HTML page that loads nothing from elsewhere and runs no script."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from training.comparison.plots import accuracy_plot, group_plots, latency_plot
from training.comparison.tables import Table, tables_of

REPORT = "report"
"""Name of the files, before ``.json``, ``.md`` and ``.html``."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--ground:#fff;--line:#d0d7de}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--ground:#0d1117;--line:#3d444d}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--ground);max-width:70rem;
margin:2rem auto;padding:0 1rem}
.wide{overflow-x:auto}table{border-collapse:collapse}
th,td{border:1px solid var(--line);padding:.25rem .6rem;text-align:left}
td{font-variant-numeric:tabular-nums}svg{display:block;max-width:100%;height:auto;margin:1rem 0}
svg text{fill:var(--ink);font-size:12px}.grid{stroke:var(--line)}.mark{stroke:var(--ink);stroke-width:2}
"""


def write_report(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the three files, each replaced in one step; returns their paths."""
    texts = {
        ".json": json.dumps(report, indent=1, ensure_ascii=False) + "\n",
        ".md": markdown(report),
        ".html": html(report),
    }
    written = []
    for ending, text in texts.items():
        path, work = folder / f"{REPORT}{ending}", folder / f".{REPORT}{ending}.writing"
        work.write_text(text, encoding="utf-8")
        work.replace(path)
        written.append(path)
    return written


def markdown(report: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    parts = [f"# {_title(report)}", *_about(report)]
    for protocol in report["protocols"]:
        parts.append(f"## {_heading(protocol)}")
        for table in tables_of(protocol):
            parts += [f"### {table.title}", table.about, _markdown_table(table)]
    parts += ["## Limits", "\n".join(f"- {sentence}" for sentence in report["limits"])]
    return "\n\n".join(parts) + "\n"


def html(report: Mapping[str, Any]) -> str:
    """The report as one page."""
    parts = [f"<h1>{escape(_title(report))}</h1>", *(f"<p>{escape(text)}</p>" for text in _about(report))]
    for protocol in report["protocols"]:
        parts += [f"<h2>{escape(_heading(protocol))}</h2>", *_plots(protocol)]
        for table in tables_of(protocol):
            parts += [f"<h3>{escape(table.title)}</h3>", f"<p>{escape(table.about)}</p>", _html_table(table)]
    limits = "".join(f"<li>{escape(sentence)}</li>" for sentence in report["limits"])
    body = "\n".join([*parts, f"<h2>Limits</h2><ul>{limits}</ul>"])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(_title(report))}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _title(report: Mapping[str, Any]) -> str:
    return f"Comparison on {report['data']['name']}, {report['part']} part"


def _heading(protocol: Mapping[str, Any]) -> str:
    return f"{protocol['split']}: {protocol['questions']:,} users"


def _about(report: Mapping[str, Any]) -> list[str]:
    data, machine = report["data"], report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return [
        f"{data['users']:,} users, {data['items']:,} items, {data['interactions']:,} interactions "
        f"(sha256 {data['sha256'][:12]}); ties: {data['ties']}; seed {report['seed']}.",
        f"{report['date']}, {machine['processor']}, {machine['cores']} cores; {versions}.",
    ]


def _plots(protocol: Mapping[str, Any]) -> Iterator[str]:
    runs = protocol["runs"]
    yield accuracy_plot(runs)
    if (plot := latency_plot(runs)) is not None:
        yield plot
    yield from group_plots(runs, "by_popularity", "NDCG@10, target chosen in training")
    yield from group_plots(runs, "by_history", "NDCG@10, items in the history")


def _markdown_table(table: Table) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in row) + " |" for row in rows)


def _cell(text: str) -> str:
    """Names come from data and folders: nothing in them may end a cell, or be read as markup."""
    return escape(text.replace("\n", " "), quote=False).replace("\\", "\\\\").replace("|", "\\|")


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>\n" for row in table.rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'
