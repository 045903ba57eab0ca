"""Whether a free title says to a model what its item says: answers to titles against answers to ids.

    python -m benchmarks.quality.free_titles artifacts/anyo-demo-tiny

For histories of one and of four items of the catalog, drawn with a seed, the dense artifact is asked by ids and by the
titles of these items; the lists are compared by how many of the first ten they have in common, and by how many of them
share a category with an item of the history. Nothing is left out of the lists, so that both rank the same items. The
last line is one JSON object.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.lib.results import WRITES, ResultFile, checked_name
from index import Catalog
from modeling.encoder.title_check import check_titles
from modeling.encoder.user_encoder import UserEncoder
from modeling.methods.dense import load_artifact

TOP = 10
console = Console(stderr=True)
RESULT = ResultFile(__file__, __doc__)


@dataclass(frozen=True)
class Compared:
    """Means over the histories of one length."""

    items: int
    histories: int
    overlap: float
    category_share_by_ids: float
    category_share_by_titles: float
    category_share_of_chance: float


def main(
    artifact: Annotated[Path, typer.Argument(help="A dense artifact that reads text.")],
    histories: Annotated[int, typer.Option(min=1, help="Histories of each length.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Of the items drawn.")] = 0,
    result: Annotated[str | None, typer.Option(metavar="FOLDER/ID", help=WRITES, callback=checked_name)] = None,
) -> None:
    """Compare answers to free titles with answers to the ids of the same items."""
    encoder, catalog = load_artifact(artifact).encoder, Catalog.read(artifact / "catalog.parquet")
    check_titles(encoder, catalog.titles, artifact.name)
    rng = np.random.default_rng(seed)
    found = []
    for items in (1, 4):
        rows_QI = np.stack([_neighbours(catalog, rng, items) for _ in range(histories)])
        found.append(_compare(encoder, catalog, rows_QI))
        console.print(found[-1])
    compared = [asdict(each) for each in found]
    RESULT.publish({"artifact": artifact.name, "seed": seed, "top": TOP, "compared": compared}, result, compared)


def _neighbours(catalog: Catalog, rng: np.random.Generator, items: int) -> NDArray[np.int64]:
    """So many items of one category, as a person takes them; any items where it has fewer."""
    first = int(rng.integers(len(catalog)))
    alike = catalog.in_categories(catalog.categories[first][:1])
    among = alike if len(alike) >= items else np.arange(len(catalog))
    return rng.permutation(np.append(first, rng.choice(among[among != first], items - 1, replace=False)))


def _compare(encoder: UserEncoder, catalog: Catalog, rows_QI: NDArray[np.int64]) -> Compared:
    vectors_ND = encoder.items.vectors().detach().float().cpu().numpy()
    by_ids = _top(encoder, vectors_ND, rows_QI.tolist())
    by_titles = _top(encoder, vectors_ND, [[catalog.titles[row] for row in rows] for rows in rows_QI.tolist()])
    chance = np.random.default_rng(1).integers(len(catalog), size=by_ids.shape)
    return Compared(
        items=rows_QI.shape[1],
        histories=len(rows_QI),
        overlap=round(float(np.mean([len({*a} & {*b}) / TOP for a, b in zip(by_ids, by_titles, strict=True)])), 3),
        category_share_by_ids=_share(catalog, rows_QI, by_ids),
        category_share_by_titles=_share(catalog, rows_QI, by_titles),
        category_share_of_chance=_share(catalog, rows_QI, chance),
    )


def _top(
    encoder: UserEncoder, vectors_ND: NDArray[np.float32], histories: list[list[int]] | list[list[str]]
) -> NDArray[np.int64]:
    users_QD = np.concatenate(
        [encoder.encode([encoder.prepare(encoder.with_titles(history))]) for history in histories]
    )
    return np.argsort(-(users_QD @ vectors_ND.T), axis=1, kind="stable")[:, :TOP]


def _share(catalog: Catalog, rows_QI: NDArray[np.int64], answers_QK: NDArray[np.int64]) -> float:
    """Mean share of answered items that have a category with an item of the history in common."""
    shares = []
    for rows, answer in zip(rows_QI.tolist(), answers_QK.tolist(), strict=True):
        known = {name for row in rows for name in catalog.categories[row]}
        shares.append(np.mean([bool(known & set(catalog.categories[row])) for row in answer]))
    return round(float(np.mean(shares)), 3)


if __name__ == "__main__":
    typer.run(main)
