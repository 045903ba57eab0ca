"""The dense way beside the generative ones: same backbone, same histories, same machine, one run.

    python -m benchmarks.generation.dense_vs_generative --data DIR [--rounds 5] [--minutes 4] [--also artifacts/tiger-…]
    python -m benchmarks.generation.dense_vs_generative --data DIR --backbone smollm2 --minutes 1 [--clients 16]

The backbone is `small` (8 layers, 512 wide) or a pretrained one; TIGER and P5 have networks of their own, made as wide
and as deep. The dense artifact is untrained, which changes nothing of its cost; the generative models are trained for
some minutes, so that texts end where titles end. A service answers them all, one request at a time, caches off, methods
taking turns; then, with `--clients`, so many clients ask each method all the time. Then texts of a forced length: our
search, Hugging Face `generate` with the same beams, and the dense forward, in one process. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch
from rich.console import Console
from transformers import AutoConfig

from benchmarks.lib.load import Load, Pool, closed_loop, request
from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import Server
from benchmarks.lib.small import SETTINGS as SMALL_SETTINGS
from benchmarks.lib.small import write_backbone, write_small
from index import Catalog
from modeling.backbone.loading import resolve_source
from modeling.encoder.build import build_model
from modeling.generation.beam_search import BeamSettings
from modeling.generation.factory import beam_search_for
from modeling.inference.encoder_forward import compile_encoder
from modeling.methods.base_generative import load_generative
from modeling.methods.bigrec import BigRecGenerator
from modeling.methods.dense import load_artifact
from training.cli_common import open_dataset
from training.data.splits import Split, leave_one_out
from training.export import write_artifact, write_list_artifact
from training.loop.fit import FitOptions, Fitted
from training.methods.base_generative import fit_generative
from training.recipes import get_recipe

HISTORY, TITLE_TOKENS, MOST_NEW = 10, 24, 48
FORCED, BEAMS = (8, 16, 32, 64), (1, 4)
NO_TOKEN = -1
READ = [f"history.limit={HISTORY}", "optimizer.epochs=1", "method.validation_users=32"]
LANGUAGE_MODEL = [
    *READ, "adapter.kind=full", "optimizer.positions=64", "optimizer.backbone_rate=5e-4",
    f"history.title_tokens={TITLE_TOKENS}",
]  # fmt: skip
# As wide and as deep as `small`: these recipes train a network of their own.
OWN_NETWORK = [*READ, "backbone.width=512", "backbone.depth=8", "backbone.heads=8", "optimizer.positions=256"]
# Of a pretrained backbone the last layers are trained; what a request costs is the same.
PRETRAINED = [
    *READ, "adapter.layers=2", "optimizer.positions=64", "optimizer.backbone_rate=5e-4",
    f"history.title_tokens={TITLE_TOKENS}",
]  # fmt: skip
WRITERS = {
    "bigrec": LANGUAGE_MODEL,
    "genre": LANGUAGE_MODEL,
    "llara": LANGUAGE_MODEL,
    "tiger": [*OWN_NETWORK, "method.codes.kind=residual-kmeans"],
    "p5": OWN_NETWORK,
}
SETTINGS = {"user_cache_entries": "0", "deadline_ms": "120000", "generative_deadline_ms": "120000"}

RESULT = ResultFile(__file__, __doc__)


def id_model(folder: Path, split: Split) -> Path:
    """A `sasrec` that has learned nothing: what it costs to ask it is real."""
    if not (folder / "manifest.json").exists():
        made = get_recipe("sasrec", [])
        model = build_model(made.model_spec(), catalog_size=split.dataset.n_items)
        write_artifact(
            folder, made, split, Fitted(model), fitted_on="train", metrics={}, training={"for": "timing only"}
        )
    return folder


def like(backbone: str) -> list[str]:
    """Settings that make a network of its own as wide and as deep as a pretrained backbone."""
    config = AutoConfig.from_pretrained(resolve_source(backbone))
    return [
        f"backbone.width={config.hidden_size}", f"backbone.depth={config.num_hidden_layers}",
        f"backbone.heads={config.num_attention_heads}",
    ]  # fmt: skip


def writer(
    recipe: str, folder: Path, backbone: str, pretrained: bool, split: Split, minutes: float, console: Console
) -> Path:
    """An artifact of ``recipe`` on a backbone, or on a network of its size, trained for some minutes; made once."""
    if (folder / "manifest.json").exists():
        return folder
    settings = WRITERS[recipe]
    if pretrained:
        settings = PRETRAINED if settings is LANGUAGE_MODEL else [*settings, *like(backbone)]
    made = get_recipe(recipe, settings, backbone=backbone if WRITERS[recipe] is LANGUAGE_MODEL else None)
    options = FitOptions(work=folder.parent / f".{folder.name}", minutes=minutes, precision="bf16")
    chooser = id_model(folder.parent / "sasrec", split) if made.requires else None
    fitted = fit_generative(made, split, options, folder=None, collaborative=chooser, console=console)
    write_list_artifact(
        folder, made, split, fitted.writer, fitted_on="train", metrics={}, training={"for": "timing only"},
    )  # fmt: skip
    return folder


def histories(split: Split, seed: int) -> Iterator[list[int]]:
    """Real sequences of exactly as many items as all ways read; those of no user twice."""
    users = [user for user in range(split.dataset.n_users) if len(split.train_row(user)) >= HISTORY]
    random.Random(seed).shuffle(users)
    for user in itertools.cycle(users):
        yield split.train_row(user)[-HISTORY:].tolist()


class Served:
    """One request after the other to a service with all artifacts."""

    def __init__(self, server: Server, item_ids: Sequence[str], ways: dict[str, tuple[str, dict[str, Any]]]) -> None:
        self.client = httpx.Client(base_url=server.url, timeout=120)
        self.item_ids, self.ways = item_ids, ways
        self.rows: dict[str, list[dict[str, float]]] = defaultdict(list)

    def round(self, asked: Sequence[Sequence[int]], *, keep: bool) -> None:
        """Every way for every history, ways taking turns."""
        for history in asked:
            for name, (path, options) in self.ways.items():
                body = {"history": [self.item_ids[row] for row in history], "k": 10, **options}
                started = time.perf_counter()
                answer = self.client.post(path, json=body)
                seconds = time.perf_counter() - started
                if answer.status_code != 200:
                    raise SystemExit(f"{name}: {answer.status_code} {answer.text[:300]}")
                found = answer.json()
                row = {"client": 1000 * seconds, **found["timings_ms"]}
                if "generated" in found:
                    row["tokens"] = found["tokens"]["new"] / options.get("beams", 20)
                if keep:
                    self.rows[name].append(row)

    def table(self) -> dict[str, dict[str, float]]:
        """Medians in milliseconds."""
        return {
            name: {field: round(statistics.median(row[field] for row in rows if field in row), 2) for field in rows[0]}
            for name, rows in self.rows.items()
        }

    def throughput(self, clients: int, seconds: float, asked: Iterator[Sequence[int]]) -> dict[str, dict[str, float]]:
        """Requests a second and median latency [ms] of each method where so many clients ask it all the time."""
        found = {}
        for name, (path, options) in self.ways.items():
            load = asyncio.run(self._closed(path, options, clients, seconds, asked))
            if set(load.statuses()) != {"200"}:
                raise SystemExit(f"{name} with {clients} clients: answers by status {load.statuses()}")
            latencies = load.latencies(200)
            found[name] = {
                "per_s": round(len(latencies) / load.seconds, 2), "p50_ms": round(1000 * statistics.median(latencies)),
                "requests": len(latencies),
            }  # fmt: skip
        return found

    async def _closed(
        self, path: str, options: dict[str, Any], clients: int, seconds: float, asked: Iterator[Sequence[int]]
    ) -> Load:
        pool = Pool(str(self.client.base_url))

        def bodies() -> Iterator[bytes]:
            for history in asked:
                body = {"history": [self.item_ids[row] for row in history], "k": 10, **options}
                yield request(f"{pool.host}:{pool.port}", path, json.dumps(body).encode())

        try:
            return await closed_loop(pool, bodies(), clients=clients, seconds=seconds)
        finally:
            pool.close()


def hugging_face(model: Any, prompt: Sequence[int], beams: int, forced: int | None, end: int) -> None:
    """`generate` with the same beams; a forced text has exactly that many tokens."""
    length = {"max_new_tokens": MOST_NEW} if forced is None else {"max_new_tokens": forced, "min_new_tokens": forced}
    with torch.inference_mode():
        model.generate(
            input_ids=torch.tensor([list(prompt)]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=beams, do_sample=False, eos_token_id=end, pad_token_id=end, **length,
        )  # fmt: skip


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def forced_lengths(dense: Path, bigrec: Path, asked: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Our search, Hugging Face's and the dense forward, for texts of given lengths, alternating."""
    encoder = load_artifact(dense).encoder
    compile_encoder(encoder)
    popular = Catalog.read(bigrec / "catalog.parquet").popular()
    model = load_generative(bigrec, popular).model
    assert isinstance(model, BigRecGenerator)
    assert model.end is not None, "titles are closed by the end token"
    prefix, end = model.prompt.prefix, model.end
    rows: list[dict[str, Any]] = []
    natural = beam_search_for(model.model, end_tokens=[end], prefix=prefix)
    endless = beam_search_for(model.model, end_tokens=[NO_TOKEN], prefix=prefix)
    for beams, forced in itertools.product(BEAMS, (None, *FORCED)):
        search = BeamSettings(beams=beams, max_new_tokens=forced or MOST_NEW)
        times: dict[str, list[float]] = {"dense": [], "ours": [], "hugging_face": []}
        for number, history in enumerate(asked):
            tokens = list(model.prepare(history).tokens)
            prompt, ready = [*prefix, *tokens], encoder.prepare(list(history))
            generator = natural if forced is None else endless
            found = {
                "dense": timed(partial(encoder.encode, [ready])),
                "ours": timed(partial(generator.search, [tokens], search)),
                "hugging_face": timed(partial(hugging_face, model.model, prompt, beams, forced, end)),
            }
            if number:
                for name, value in found.items():
                    times[name].append(value)
        medians = {name: statistics.median(values) for name, values in times.items()}
        rows.append(
            {
                "beams": beams,
                "tokens": forced or "natural",
                **{f"{name}_ms": round(value, 1) for name, value in medians.items()},
                "ours_over_dense": round(medians["ours"] / medians["dense"], 2),
                "hugging_face_over_dense": round(medians["hugging_face"] / medians["dense"], 2),
                "hugging_face_over_ours": round(medians["hugging_face"] / medians["ours"], 2),
            }
        )
    return rows


def made(options: argparse.Namespace, split: Split, console: Console) -> tuple[Path, dict[str, Path]]:
    """The dense artifact and the generative ones by recipe; what is missing is made."""
    out = options.out / f"ways-{split.dataset.sha256[:8]}"
    name = Path(options.backbone or "small").name
    dense, backbone = out / f"dense-{name}", str(options.backbone or out / "small")
    if options.backbone is None and not (out / "small" / "config.json").exists():
        write_backbone(out / "small", split.dataset.titles)
    if not (dense / "manifest.json").exists():
        write_small(
            options.data, dense, "titles", console,
            settings=SMALL_SETTINGS if options.backbone is None else ["adapter.kind=none"], backbone=options.backbone,
        )  # fmt: skip
    return dense, {
        recipe: writer(
            recipe, out / f"{recipe}-{name}", backbone, options.backbone is not None, split, options.minutes, console
        )
        for recipe in WRITERS
    }


def main() -> None:
    """Make what is missing, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--out", type=Path, default=Path("artifacts/.benchmarks"))
    parser.add_argument("--minutes", type=float, default=4.0, help="of training of each writer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3, help="of a round, for every way")
    parser.add_argument("--also", type=Path, action="append", default=[], help="another generative artifact, as it is")
    parser.add_argument("--backbone", help="a pretrained backbone, as `--backbone` of `train`, instead of `small`")
    parser.add_argument("--clients", type=int, default=0, help="that ask each method all the time; 0: none")
    parser.add_argument("--seconds", type=float, default=20.0, help="for which they ask each method")
    RESULT.add_option(parser)
    options = parser.parse_args()
    console = Console(stderr=True)
    torch.set_num_threads(1)
    split = leave_one_out(open_dataset(options.data, ties="file", seed=0, strict=False, console=console))
    dense, writers = made(options, split, console)
    ways: dict[str, tuple[str, dict[str, Any]]] = {"dense": ("/recommend", {})}
    for beams in BEAMS:
        ways[f"bigrec, {beams} beams"] = (
            "/recommend/generative",
            {"artifact": writers["bigrec"].name, "beams": beams},
        )
    for name in ("genre", "tiger", "p5"):
        ways[f"{name}, 20 beams"] = ("/recommend/generative", {"artifact": writers[name].name, "beams": 20})
    ways["llara"] = ("/recommend/generative", {"artifact": writers["llara"].name, "beams": 1})
    for folder in options.also:
        ways[f"{folder.name}, 20 beams"] = ("/recommend/generative", {"artifact": folder.name, "beams": 20})
    asked = histories(split, seed=1)
    with Server(dense, SETTINGS, others=[*writers.values(), *options.also]) as server:
        served = Served(server, split.dataset.item_ids, ways)
        for number in range(options.rounds + 1):
            served.round([next(asked) for _ in range(options.requests)], keep=number > 0)
        many = served.throughput(options.clients, options.seconds, asked) if options.clients else {}
    table = served.table()
    bigrec = table["bigrec, 4 beams"]
    ratio = table["dense"]["client"] / (bigrec["prefill"] + table["dense"]["search"])
    forced = forced_lengths(dense, writers["bigrec"], [next(asked) for _ in range(options.rounds + 1)])
    for name, row in table.items():
        console.print(name, row)
    for row in forced:
        console.print(row)
    RESULT.publish(
        {
            "served_ms": table,
            "dense_over_bigrec_prefill_and_search": round(ratio, 3),
            "forced": forced,
            "clients": options.clients,
            "throughput": many,
        },
        options.result,
        [
            {
                "method": name,
                **row,
                **many.get(name, {}),
                "over_dense": round(row["client"] / table["dense"]["client"], 2),
            }
            for name, row in table.items()
        ],
    )


if __name__ == "__main__":
    main()
