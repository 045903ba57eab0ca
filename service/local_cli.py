"""`python -m service recommend` and `doctor`: an answer without a server, and a look at the machine."""

from __future__ import annotations

import json
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from index.command_line.border import BorderedGroup

if TYPE_CHECKING:
    from service.recommend.local import Item, LocalRecommender, RecommendedItem

app = typer.Typer(
    cls=BorderedGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="An answer without a server, and a look at the machine.",
)
NEAR = 3
NOT_ALLOWED, FAILED = 2, 1
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, alone on standard output.")]


@app.command()
def recommend(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder, of either kind.")],
    items: Annotated[
        list[str], typer.Argument(help="What was taken, oldest first: ids or titles of the catalog, or other titles.")
    ],
    k: Annotated[int, typer.Option(min=1, max=1000, help="How many items.")] = 10,
    category: Annotated[
        list[str] | None, typer.Option(help="Recommend items of this category only; repeatable.")
    ] = None,
    fields: Annotated[
        str, typer.Option(help="What to show of the items beside the title: categories,price; any attribute.")
    ] = "",
    json_output: Json = False,
) -> None:
    """Recommend what comes next, as POST /recommend does, without starting a server."""
    if not artifact.is_dir():
        _stop(f"artifact folder {artifact} does not exist; `anyo train` makes one", NOT_ALLOWED)
    from service.errors import StartError
    from service.recommend.local import load

    try:
        recommender = load(artifact)
    except StartError as error:
        _stop(str(error), FAILED)
    history = [_item(recommender, text) for text in items]
    try:
        found = recommender.recommend(history, k, categories=category or (), fields=_names(fields))
    except ValueError as error:
        _stop(str(error), NOT_ALLOWED)
    rows = [_as_answered(rank, each) for rank, each in enumerate(found, 1)]
    if json_output:
        print(json.dumps({"artifact": recommender.name, "history": history, "items": rows}, ensure_ascii=False))
        return
    for given, each in zip(items, history, strict=True):
        print(f"read: {recommender.catalog.titles[_row(recommender, each)] if isinstance(each, str) else given}"
              f"{'' if isinstance(each, str) else '  (not in the catalog: read as a title)'}")  # fmt: skip
    for row in rows:
        print(f"{row['rank']:>4}  {row['score']:8.4f}  {row['title']}  [{row['item_id']}]{_beside(row)}")


@app.command()
def doctor(json_output: Json = False) -> None:
    """Say what this machine can do for anyo: processor, precision worth taking, memory, GPU, packages, disk. Status 1
    where something will not work."""
    from service.engine.cpu import set_library_defaults

    set_library_defaults()  # as the service does, before torch is read
    from service.doctor import examine

    found = examine()
    if json_output:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print("\n".join(f"{name:<11}{value}" for name, value in _lines(found)))
        for problem in found["problems"]:
            print(f"problem: {problem}", file=sys.stderr)
    if found["problems"]:
        raise typer.Exit(FAILED)


def _names(fields: str) -> list[str]:
    return [name.strip() for name in fields.split(",") if name.strip()]


def _as_answered(rank: int, item: RecommendedItem) -> dict[str, Any]:
    """An item as `POST /recommend` answers it."""
    row: dict[str, Any] = {"rank": rank, "item_id": item.item_id, "title": item.title, "score": item.score}
    row |= {"categories": item.categories} if item.categories is not None else {}
    return row | ({"attributes": dict(item.attributes)} if item.attributes is not None else {})


def _beside(row: dict[str, Any]) -> str:
    """The fields of an item in words: `  (mystery, crime; price 12.5)`."""
    parts = [", ".join(row.get("categories", ()))]
    for name, value in row.get("attributes", {}).items():
        parts.append(f"{name} {', '.join(value) if isinstance(value, (list, tuple)) else value}")
    return f"  ({'; '.join(filter(None, parts))})" if any(parts) else ""


def _item(recommender: LocalRecommender, text: str) -> Item:
    """An id of the catalog, the id of the item with this title, or a free title where the model reads text."""
    catalog = recommender.catalog
    if catalog.row(text) is not None:
        return text
    titled = [row for row, title in enumerate(catalog.titles) if title.casefold() == text.casefold()]
    if titled:
        return catalog.item_ids[max(titled, key=lambda row: int(catalog.popularity[row]))]
    if "text" in recommender.reads:
        return {"title": text}
    return _refuse(recommender, text)


def _refuse(recommender: LocalRecommender, text: str) -> NoReturn:
    catalog = recommender.catalog
    near = get_close_matches(text, [*catalog.titles, *catalog.item_ids], NEAR)
    meant = f"; close are {', '.join(map(repr, near))}" if near else ""
    _stop(
        f"{text!r} is neither an id nor a title of the {len(catalog)} items, and {recommender.name!r} (recipe "
        f"{recommender.recipe!r}) reads no other titles{meant}",
        NOT_ALLOWED,
    )


def _row(recommender: LocalRecommender, item_id: str) -> int:
    row = recommender.catalog.row(item_id)
    assert row is not None, "it was found by this id"
    return row


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of `doctor`: a name and a sentence each."""
    processor, spent, memory = found["processor"], found["precision"]["milliseconds"], found["memory"]
    faster = found["precision"]["faster_than_fp32"]
    figures = ", ".join(f"{name} {ms:.2f} ms" for name, ms in spent.items())
    sizes = ", ".join(f"{name} {size / 2**30:.1f} GiB" for name, size in memory.items() if size is not None)
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory'] / 2**30:.0f} GiB)" for gpu in found["gpu"])
    return [
        ("python", f"{found['python']} on {found['system']}"),
        ("processor", f"{processor['name']}, {processor['cores']} cores, {' '.join(processor['features'])}"),
        ("precision", f"{' and '.join(faster) or 'fp32'} worth taking for language models (a layer: {figures})"),
        ("memory", sizes or "unknown"),
        ("gpu", gpus or "none that PyTorch can use"),
        ("packages", ", ".join(f"{name} {number}" for name, number in found["packages"].items())),
        ("extras", ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in found["extras"].items())),
        ("disk", ", ".join(f"{place} {free / 2**30:.1f} GiB free" for place, free in found["disk"].items())),
    ]


def _stop(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code)
