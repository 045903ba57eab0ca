"""The two tables of README.md and README.ja.md: quality with latency, and speed against other servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.pages.figures import FOLDER, latencies
from scripts.pages.results import ROOT, Experiment
from scripts.pages.tables import NOTHING, cell, table

Results = dict[str, Experiment]
Link = Callable[[Path], str]

PAGES = ROOT / "docs" / "benchmarks"
DATA = ("amazon-beauty", "movietweetings-100k", "movielens-small")
METHODS = (
    "Popularity", "Item-kNN", "Hybrid kNN (titles + co-occurrence)", "SASRec", "SASRec + title embeddings",
    "anyo (MiniLM)", "GENRE", "TIGER",
)  # fmt: skip
SYSTEMS = ("anyo", "FastAPI tuned", "LitServe tuned", "BentoML tuned", "Ray Serve tuned", "bare loop")

ENGLISH = {
    "method": "Method", "kind": "Type", "latency": "Latency (ms)",
    "head": "NDCG@10 on test, higher is better (± half of the 95 % interval); leave-one-out, whole catalog ranked, one seed.",
    "plot": "NDCG@10 against latency on Amazon Beauty",
    "notes": (
        "Where intervals overlap, no method is shown to be better. [All methods and protocols]({quality})",
        "MiniLM (22 M parameters) is the largest backbone with a quality figure. It adds nothing measurable"
        " over the same title embeddings in a small transformer.",
        "Latency: one request over HTTP, CPU with two cores, barely trained networks of one size for all methods, not the"
        " models of the table. GENRE and TIGER were timed before decoding ended early, so both are upper"
        " bounds. [Protocol]({latency})",
    ),
    "system": "System", "rps": "Requests/s", "p50": "p50 (ms)", "p99": "p99 (ms)", "memory": "Memory (MB)",
    "speed": "16 clients, 300 tokens a request, decoder of 8 layers and width 512, fp32, two cores. [Protocol and other loads]({serving})",
    "types": {},
    "names": {},
}  # fmt: skip
JAPANESE = {
    "method": "手法", "kind": "種類", "latency": "レイテンシ (ms)",
    "head": "テストデータでの NDCG@10（高いほど良い。± は 95 % 信頼区間の半幅）。leave-one-out、全アイテムをランキング、シード 1 つ。",
    "plot": "Amazon Beauty の NDCG@10 とレイテンシ",
    "notes": (
        "信頼区間が重なる手法の間に優劣は示せません。[全手法と評価方法]({quality})（英語）",
        "品質を測定した最大のバックボーンは MiniLM（2,200 万パラメータ）です。同じタイトル埋め込みを使う小さな Transformer に対して、"
        "言語モデルによる改善は確認できていません。",
        "レイテンシは HTTP 経由の 1 リクエスト、2 コアの CPU での値です。表のモデルではなく、全手法で大きさをそろえたほとんど学習していないネットワークで測定しました。"
        "GENRE と TIGER は早期終了を導入する前の測定値で、上限にあたります。[測定方法]({latency})（英語）",
    ),
    "system": "システム", "rps": "リクエスト/秒", "p50": "p50 (ms)", "p99": "p99 (ms)", "memory": "メモリ (MB)",
    "speed": "16 クライアント、1 リクエスト 300 トークン、8 層・幅 512 のデコーダー、fp32、2 コア。[測定方法とその他の負荷]({serving})（英語）",
    "types": {
        "baseline": "ベースライン", "dense, IDs": "dense、ID", "dense, IDs + text": "dense、ID + テキスト",
        "dense, language model": "dense、言語モデル", "generative, titles": "生成型、タイトル",
        "generative, semantic IDs": "生成型、セマンティック ID",
    },
    "names": {
        "Popularity": "人気順", "Hybrid kNN (titles + co-occurrence)": "ハイブリッド kNN（タイトル + 共起）",
        "SASRec + title embeddings": "SASRec + タイトル埋め込み", "bare loop": "サーバーなしのループ（上限）",
    },
}  # fmt: skip


def _half(value: dict[str, Any] | None) -> str:
    """A value with half of its interval."""
    if value is None:
        return NOTHING
    return cell({"value": value["value"], "plus_minus": (value["high"] - value["low"]) / 2}, 4)


def _quality(words: dict[str, Any]) -> Callable[[Results, Link], str]:
    def block(results: Results, link: Link) -> str:
        rows = results["quality-default-recipes"]["rows"]
        latency = latencies(results)
        columns = [("method", words["method"]), ("kind", words["kind"]), *((name, name) for name in DATA)]
        columns.append(("latency", words["latency"]))
        lines = []
        for method in METHODS:
            found = {row["data"]: row for row in rows if row["method"] == method}
            kind = next(iter(found.values()))["kind"]
            line = {"method": words["names"].get(method, method), "kind": words["types"].get(kind, kind)}
            line |= {name: _half(found[name]["ndcg@10"]) for name in DATA}
            lines.append(line | {"latency": cell(latency.get(method), None)})
        if len(lines) > 8:
            raise ValueError("README's table has at most eight rows")
        places = {"quality": link(PAGES / "quality.md"), "latency": link(PAGES / "dense-vs-generative.md")}
        parts = [words["head"], table([_column(*each) for each in columns], lines)]
        parts.append("\n".join(f"- {note.format(**places)}" for note in words["notes"]))
        parts.append(f"![{words['plot']}]({link(FOLDER / 'quality-latency.svg')})")
        return "\n\n".join(parts)

    return block


def _speed(words: dict[str, Any]) -> Callable[[Results, Link], str]:
    def block(results: Results, link: Link) -> str:
        keys = {"rps": "rps", "p50_ms": "p50", "p99_ms": "p99", "memory_mb": "memory"}
        columns = [_column("system", words["system"]), *(_column(key, words[word]) for key, word in keys.items())]
        found = {row["system"]: row for row in results["serving-tuned-peers-fp32"]["rows"] if row["clients"] == 16}
        rows = [found[name] | {"system": words["names"].get(name, name)} for name in SYSTEMS if name in found]
        return f"{words['speed'].format(serving=link(PAGES / 'serving.md'))}\n\n{table(columns, rows)}"

    return block


def _column(key: str, title: str) -> dict[str, Any]:
    return {"key": key, "title": title, "digits": None}


BLOCKS = {
    "readme-quality": _quality(ENGLISH),
    "readme-quality-ja": _quality(JAPANESE),
    "readme-speed": _speed(ENGLISH),
    "readme-speed-ja": _speed(JAPANESE),
}
