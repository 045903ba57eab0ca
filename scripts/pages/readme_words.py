"""The words of README's generated tables, in English and Japanese."""

from __future__ import annotations

from typing import Any

ENGLISH: dict[str, Any] = {
    "method": "Method",
    "kind": "Type",
    "latency": "Latency (ms)",
    "head": (
        "NDCG@10 on test, higher is better (± half of the 95 % interval); leave-one-out, whole catalog ranked,"
        " one seed."
    ),
    "plot": "NDCG@10 against latency on Amazon Beauty",
    "notes": (
        "Where intervals overlap, no method is shown to be better. [All methods and protocols]({quality})",
        "MiniLM (22 M parameters) is the largest backbone with a test figure. It adds nothing measurable"
        " over the same title embeddings in a small transformer.",
        "Latency: one request over HTTP on a CPU with two cores, hardly trained networks of equal size for all"
        " methods, not the models of the table. GENRE and TIGER were timed before early stopping was added to the"
        " search, so both are upper bounds. [Protocol]({latency})",
    ),
    "system": "System",
    "rps": "Requests/s",
    "p50": "p50 (ms)",
    "p99": "p99 (ms)",
    "memory": "Memory (MB)",
    "speed": (
        "16 clients, 300 tokens a request, decoder of 8 layers and width 512, fp32, two CPU cores."
        " [Protocol and other loads]({serving})"
    ),
    "types": {},
    "names": {},
}
JAPANESE: dict[str, Any] = {
    "method": "手法",
    "kind": "種類",
    "latency": "レイテンシ (ms)",
    "head": (
        "テストデータでの NDCG@10（高いほど良い。± は 95 % 信頼区間の半幅）。"
        "leave-one-out、全アイテムをランキング、シード 1 つ。"
    ),
    "plot": "Amazon Beauty の NDCG@10 とレイテンシ",
    "notes": (
        "信頼区間が重なる手法の間に優劣は示せません。[全手法と評価方法]({quality})（英語）",
        "テスト分割で品質を測定した最大のバックボーンは MiniLM（2,200 万パラメータ）です。"
        "同じタイトル埋め込みを使う小さな Transformer に対して、"
        "言語モデルによる改善は確認できていません。",
        "レイテンシは 2 コアの CPU で HTTP 経由の 1 リクエストを測定した値です。"
        "表のモデルではなく、全手法で大きさをそろえた、"
        "ほとんど学習していないネットワークを使いました。"
        "GENRE と TIGER は早期終了の導入前の値で、上限にあたります。[測定方法]({latency})（英語）",
    ),
    "system": "システム",
    "rps": "リクエスト/秒",
    "p50": "p50 (ms)",
    "p99": "p99 (ms)",
    "memory": "メモリ (MB)",
    "speed": (
        "16 クライアント、1 リクエスト 300 トークン、8 層・幅 512 のデコーダー、fp32、CPU 2 コア。"
        "[測定方法とその他の負荷]({serving})（英語）"
    ),
    "types": {
        "baseline": "ベースライン",
        "dense, IDs": "dense、ID",
        "dense, IDs + text": "dense、ID + テキスト",
        "dense, language model": "dense、言語モデル",
        "generative, titles": "生成型、タイトル",
        "generative, semantic IDs": "生成型、セマンティック ID",
    },
    "names": {
        "Popularity": "人気順",
        "Hybrid kNN (titles + co-occurrence)": "ハイブリッド kNN（タイトル + 共起）",
        "SASRec + title embeddings": "SASRec + タイトル埋め込み",
    },
}
