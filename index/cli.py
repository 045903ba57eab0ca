"""`python -m index`: build an index for an artifact, look into one, and measure recall and latency."""

from __future__ import annotations

import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from index.command_line.border import FAILED, BorderedGroup, say
from index.command_line.one_writer import one_writer
from index.command_line.time_limit import TimeBudget, time_limit

if TYPE_CHECKING:
    from index import Catalog, IndexSpec, StoredIndex
    from index.base import FloatArray

app = typer.Typer(
    cls=BorderedGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Build, inspect and measure item indexes.",
)

MOST_ITEMS, MOST_SEARCHES = 10_000, 1_000_000
VECTORS_FILE = "item_vectors.safetensors"
CATALOG_FILE = "catalog.parquet"
MANIFEST_FILE = "manifest.json"
Json = Annotated[bool, typer.Option("--json", help="Print the answer as one line of JSON.")]


Queries = Annotated[
    Path | None,
    typer.Option(help="safetensors file with one tensor of user vectors; left out: item vectors with noise."),
]
Parameters = Annotated[
    list[str], typer.Option("--set", metavar="NAME=VALUE", help="Parameter of the kind; may be given several times.")
]


@app.command()
def build(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder; its item_vectors.safetensors is read.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; the artifact's own index/ by default.")] = None,
    kind: Annotated[str, typer.Option(help="Kind of index; `python -m index kinds` lists them.")] = "flat",
    settings: Parameters = [],  # noqa: B006 (typer copies it)
    memory_mib: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1 << 24,
            help="Build an inverted file in shards read from disk within this much memory; resumable.",
        ),
    ] = None,
    queries: Queries = None,
    time_budget: TimeBudget = None,
    as_json: Json = False,
) -> None:
    """Build an index from an artifact's item vectors (the same vectors give the same bytes)."""
    with time_limit(time_budget):
        _print(_build(artifact, out, kind, settings, memory_mib, queries), as_json)


def _build(
    artifact: Path, out: Path | None, kind: str, settings: list[str], memory_mib: int | None, queries: Path | None
) -> dict[str, Any]:
    from index import IndexFolderError
    from index.storage import check_index_target

    folder = out or artifact / "index"
    try:
        check_index_target(folder)
        spec = _spec(kind, settings)
    except (IndexFolderError, ValueError) as error:
        _fail(str(error))
    source = artifact / VECTORS_FILE
    if not source.is_file():
        _fail(f"{source} cannot be read: there is no such file")
    if out is None:
        _check_manifest(artifact, folder, spec)
    with one_writer(out or artifact):
        _write(source, folder, spec, memory_mib, queries)
    return {"folder": str(folder), **_describe(folder, mapped=memory_mib is not None)}


def _write(source: Path, folder: Path, spec: IndexSpec, memory_mib: int | None, queries: Path | None) -> None:
    from index import IndexFolderError, SearchError, build_index, save_index
    from index.building.in_parts import build_streamed

    try:
        if memory_mib is not None:
            given = None if queries is None else _read_vectors(queries)
            build_streamed(spec, source, folder, memory_mib, given, lambda line: say(f"[index] {line}"))
        else:
            vectors_ND = _read_vectors(source)
            users = None if queries is None else partial(_read_queries, queries, vectors_ND.shape[1])
            save_index(build_index(spec, vectors_ND, users), folder)
    except (SearchError, IndexFolderError) as error:
        _fail(f"{source}: {error}")


@app.command()
def kinds(as_json: Json = False) -> None:
    """List the kinds of index with their parameters and usual values."""
    from index.kinds import kind_names

    _print({kind: _spec(kind, []).parameters for kind in kind_names()}, as_json)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Index folder, or an artifact folder that holds one.")],
    as_json: Json = False,
) -> None:
    """Open an index with every check and say what it holds."""
    from index import Catalog, CatalogError

    index_folder = _index_folder(folder)
    answer = {"folder": str(index_folder), **_describe(index_folder)}
    catalog_path = index_folder.parent / CATALOG_FILE
    if catalog_path.is_file():
        try:
            answer["catalog"] = _describe_catalog(Catalog.read(catalog_path), answer["size"])
        except CatalogError as error:
            _fail(str(error))
    _print(answer, as_json)


@app.command()
def tune(
    folder: Annotated[Path, typer.Argument(help="Index folder, or an artifact folder that holds one.")],
    k: Annotated[int, typer.Option(min=1, max=MOST_ITEMS, help="Items asked for per query.")] = 10,
    repeats: Annotated[
        int, typer.Option(min=1, max=MOST_SEARCHES, help="Searches per measurement; the median is shown.")
    ] = 50,
    recall: Annotated[float, typer.Option(min=0, max=1, help="Recall at k that the pick must reach.")] = 0.95,
    milliseconds: Annotated[
        float | None, typer.Option(min=0.001, max=60_000, help="Median of one query that the pick must keep.")
    ] = None,
    queries: Queries = None,
    curve: Annotated[Path | None, typer.Option(help="File to write the measurements to, as JSON.")] = None,
    time_budget: TimeBudget = None,
    as_json: Json = False,
) -> None:
    """Measure recall and latency at every search effort, and pick the cheapest that meets the targets."""
    if curve is not None:
        _check_curve(curve)
    with time_limit(time_budget):
        answer = _tune(_open(_index_folder(folder), mapped=True), k, repeats, recall, milliseconds, queries)
    if curve is not None:
        curve.write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
    _print(answer, as_json)


def _tune(
    index: StoredIndex, k: int, repeats: int, recall: float, milliseconds: float | None, queries: Path | None
) -> dict[str, Any]:
    from index.build import sampled_queries
    from index.building.tuning import cheapest
    from index.building.tuning import curve as measured

    queries_QD = sampled_queries(index) if queries is None else _read_queries(queries, index.dim)
    points = measured(index, queries_QD, k, repeats)
    pick = cheapest(points, recall, milliseconds)
    answer: dict[str, Any] = {
        "kind": index.spec.kind,
        "parameters": index.spec.parameters,
        "recall_at_10": index.recall_at_10,
        "size": index.size,
        "dim": index.dim,
        "k": k,
        "queries": "items" if queries is None else "users",
        "pick": None if pick is None else pick.shown(),
        "advice": _advice(index, pick is None),
        "milliseconds_one_query": next(
            point.milliseconds for point in points if point.parameters == index.spec.parameters
        ),
        "milliseconds_32_queries": _latency(index, 32, k, max(1, repeats // 5)),
        "milliseconds_one_query_excluding_60": _latency(index, 1, k, repeats, excluded=60),
    }
    if not index.exact:
        answer["efforts"] = [point.shown() for point in points]
    return answer


def _check_curve(path: Path) -> None:
    """Refuse to replace a file that this command did not write."""
    if not path.exists():
        return
    try:
        ours = {"kind", "pick", "advice"} <= json.loads(path.read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        _fail(f"{path} is there and was not written by this command; name a new file")


def _advice(index: StoredIndex, missed: bool) -> str:
    if index.exact:
        return "exact search: recall is 1 by construction and there is no parameter to tune"
    if missed:
        return "no effort of this index meets the targets: build one with other parameters, or of another kind"
    return "`python -m training rewrite ARTIFACT --set index.effort=…` writes the artifact with the effort of the pick"


def _read_queries(path: Path, dim: int) -> FloatArray:
    queries_QD = _read_vectors(path)
    if queries_QD.ndim != 2 or queries_QD.shape[1] != dim or not len(queries_QD):
        _fail(f"{path} holds vectors of shape {list(queries_QD.shape)}; this index takes [queries, {dim}]")
    return queries_QD


def _spec(kind: str, settings: list[str]) -> IndexSpec:
    """The spec of a kind with NAME=VALUE settings; raises ValueError."""
    from index import spec_of

    values = {}
    for setting in settings:
        name, sign, text = setting.partition("=")
        if not sign or not name or name == "kind":
            raise ValueError(f"setting {setting!r} is not of the form NAME=VALUE")
        values[name] = text
    return spec_of(kind, values)


def _check_manifest(artifact: Path, folder: Path, spec: IndexSpec) -> None:
    """Refuse to replace the index of a sealed artifact by another one: its manifest holds the hash of the old one."""
    from index.storage import read_entry

    if not (artifact / MANIFEST_FILE).is_file() or not folder.is_dir():
        return
    if read_entry(folder).spec != spec:
        _fail(
            f"{artifact / MANIFEST_FILE} lists another index, and the artifact would not load; `python -m training "
            f"rewrite {artifact} --set index.kind={spec.kind}` builds it into the artifact, or give --out"
        )


def _read_vectors(path: Path) -> FloatArray:
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        _fail(f"{path} cannot be read: {error}")
    if len(tensors) != 1:
        _fail(f"{path} holds tensors {sorted(tensors)}; expected exactly one, the item vectors [items, width]")
    vectors: FloatArray = next(iter(tensors.values())).astype(np.float32)
    return vectors


def _index_folder(folder: Path) -> Path:
    from index.storage import ENTRY_FILE

    return folder if (folder / ENTRY_FILE).exists() or not (folder / "index").is_dir() else folder / "index"


def _open(folder: Path, mapped: bool = False) -> StoredIndex:
    from index import IndexFolderError, open_index

    try:
        return open_index(folder, mapped=mapped)
    except IndexFolderError as error:
        _fail(str(error))


def _describe(folder: Path, mapped: bool = False) -> dict[str, Any]:
    from index.storage import read_entry

    index = _open(folder, mapped)
    entry = read_entry(folder)
    return {
        "kind": entry.spec.kind,
        "parameters": entry.spec.parameters,
        "metric": entry.metric,
        "size": index.size,
        "dim": index.dim,
        "recall_at_10": entry.recall_at_10,
        "recall_queries": entry.recall_queries,
        "bytes": entry.bytes,
        "memory_bytes": index.nbytes,
        "sha256": entry.sha256,
    }


def _describe_catalog(catalog: Catalog, index_size: int) -> dict[str, Any]:
    if len(catalog) != index_size:
        _fail(f"{CATALOG_FILE} holds {len(catalog):,} items, the index beside it {index_size:,}")
    return {
        "items": len(catalog),
        "categories": len(catalog.known_categories),
        "popularity_counted_on": catalog.popularity_counted_on,
        "most_popular": [catalog.titles[row] for row in catalog.popular()[:3]],
    }


def _latency(index: StoredIndex, batch: int, k: int, repeats: int, excluded: int = 0) -> float:
    """Median wall time of one search in milliseconds, over random unit queries."""
    import numpy as np

    rng = np.random.default_rng(0)
    queries_BD = rng.standard_normal((batch, index.dim)).astype(np.float32)
    exclude = [rng.integers(0, index.size, size=excluded) for _ in range(batch)] if excluded else None
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        index.search(queries_BD, k, exclude)
        seconds.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(seconds[1:]), 3)  # the first search warms caches and threads up


def _print(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer))
        return
    width = max(map(len, answer))
    for name, value in answer.items():
        typer.echo(f"{name.ljust(width)}  {value}")


def _fail(message: str) -> NoReturn:
    say(f"error: {message}")
    raise typer.Exit(FAILED)
