"""Tools over the Model Context Protocol, for programs in which a language model asks: recommend, similar, explain.

    python -m anyo_client.mcp_server [http://127.0.0.1:8000]

It speaks on standard input and output. The variable `API_KEY` is sent as the API key
where the service asks for one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from anyo_client.answers import Recommendation, RecommendedItem
from anyo_client.client_async import AsyncClient
from anyo_client.errors import AnyoError

URL = "http://127.0.0.1:8000"
History = Annotated[list[str], Field(min_length=1, description="Item ids, or titles in words, oldest first.")]
Count = Annotated[int, Field(ge=1, le=100, description="How many items.")]
Fields = Annotated[
    Sequence[str], Field(description="What to say of the items beside the title: categories, or names of attributes.")
]


def make_server(client: AsyncClient) -> MCPServer:
    """Return a server whose tools ask with `client`."""
    server = MCPServer("anyo", instructions="Recommends what comes next after the items that somebody took.")

    @server.tool()
    async def recommend(history: History, k: Count = 10, fields: Fields = ()) -> str:
        """Recommend what somebody takes next who took these items, best first."""
        with _refusals_in_words():
            return _lines(await client.recommend(await _known(client, history), k=k, fields=fields))

    @server.tool()
    async def similar(item_id: str, k: Count = 10, fields: Fields = ()) -> str:
        """Find the items of the catalog that are most like one, by its id."""
        with _refusals_in_words():
            found = await client.similar(item_id, k=k, fields=fields)
        return "\n".join(map(_line, found.items))

    @server.tool()
    async def explain(history: History, k: Count = 3, fields: Fields = ()) -> str:
        """Recommend, and say which item of the history raised each score most and which one is most similar."""
        with _refusals_in_words():
            return _lines(await client.recommend(await _known(client, history), k=k, fields=fields, explain=True))

    return server


@contextmanager
def _refusals_in_words() -> Iterator[None]:
    """The service's reason for whoever asked; the text of any other error stays here."""
    try:
        yield
    except AnyoError as error:
        raise ToolError(str(error)) from error


async def _known(client: AsyncClient, history: list[str]) -> list[str | Mapping[str, str]]:
    """Ids of the catalog as they are; anything else as a free title."""
    return [entry if await _is_item(client, entry) else {"title": entry} for entry in history]


async def _is_item(client: AsyncClient, entry: str) -> bool:
    try:
        await client.item(entry)
    except AnyoError as error:
        if error.status != 404:
            raise
        return False
    return True


def _line(item: RecommendedItem) -> str:
    """One item, with the fields that were asked for: `1. A title [id] (categories: mystery, crime; price: 12.5)`."""
    fields = {} if item.categories is None else {"categories": item.categories}
    said = []
    for name, value in {**fields, **(item.attributes or {})}.items():
        text = ", ".join(value) if isinstance(value, list) else str(value)
        said += [f"{name}: {text}"] if text else []
    return f"{item.rank}. {item.title} [{item.item_id}]" + (f" ({'; '.join(said)})" if said else "")


def _lines(found: Recommendation) -> str:
    lines = []
    for place, item in enumerate(found.items):
        lines.append(_line(item))
        if found.explanation is None:
            continue
        titles = [each.title for each in found.explanation.history]
        if found.explanation.influence.values is not None:
            values = found.explanation.influence.values[place]
            most = max(range(len(values)), key=lambda each: values[each])
            lines.append(f"   without {titles[most]!r} its score changes by {-values[most]:+.3f}")
        sentence = found.explanation.sentence
        if sentence is not None and sentence.text is not None and sentence.item_id == item.item_id:
            lines.append(f"   {sentence.text}")
        if (near := found.explanation.nearest.values[place]) is not None:
            lines.append(f"   most similar: {titles[near.place]!r}, cosine {near.cosine:.2f}")
    return "\n".join(lines)


def main() -> None:
    """Serve on standard input and output until it is closed."""
    url = sys.argv[1] if len(sys.argv) > 1 else URL
    make_server(AsyncClient(url, api_key=os.environ.get("API_KEY"))).run()


if __name__ == "__main__":
    main()
