"""The MCP tools and the Locust file against the real service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import mcp

from anyo_client import AsyncClient
from anyo_client.mcp_server import make_server
from service.http.app import create_app
from testing.running import process, running

ROOT = Path(__file__).resolve().parents[2]


async def test_a_language_model_gets_recommendations_similar_items_and_reasons() -> None:
    async with running() as service:
        transport = httpx.ASGITransport(create_app(service.service))
        async with (
            AsyncClient("http://localhost", transport=transport) as anyo,
            mcp.Client(make_server(anyo)) as client,
        ):
            assert {tool.name for tool in (await client.list_tools()).tools} == {"recommend", "similar", "explain"}

            async def told(name: str, **given: Any) -> str:
                result = await client.call_tool(name, given)
                assert not result.is_error, result
                return str(result.content[0].text)  # type: ignore[union-attr]

            history = ["item-0003", "a title of nothing"]
            answer = await anyo.recommend(["item-0003", {"title": history[1]}], k=3, explain=True)
            lines = [f"{item.rank}. {item.title} [{item.item_id}]" for item in answer.items]
            assert (await told("recommend", history=history, k=3)).splitlines() == lines
            reasons = (await told("explain", history=history, k=3)).splitlines()
            assert reasons[::3] == lines and "its score changes by" in reasons[1] and "cosine" in reasons[2]
            similar = await anyo.similar("item-0003", k=2)
            assert similar.items[1].title in await told("similar", item_id="item-0003", k=2)
            assert (await client.call_tool("similar", {"item_id": "none"})).is_error
            shown = await anyo.recommend(["item-0003"], k=2, fields=["categories"])
            said = (await told("recommend", history=["item-0003"], k=2, fields=["categories"])).splitlines()
            assert said == [
                f"{item.rank}. {item.title} [{item.item_id}] (categories: {', '.join(item.categories or ())})"
                for item in shown.items
            ]
            assert "(categories: " in await told("similar", item_id="item-0003", k=1, fields=["categories"])
            unknown = await client.call_tool("recommend", {"history": ["item-0003"], "fields": ["prise"]})
            assert unknown.is_error and "prise" in str(unknown.content)


def test_locust_sends_requests_that_the_service_answers(tmp_path: Path) -> None:
    with process(tmp_path) as server:
        command = [
            sys.executable, "-m", "locust", "-f", "benchmarks/serving/locustfile.py", "--headless",
            "--host", server.url, "-u", "3", "-r", "3",
            "-t", "2s", "--stop-timeout", "1", "--only-summary", "--exit-code-on-error", "1",
        ]  # fmt: skip
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 0, ended.stderr
        served = httpx.get(server.url + "/metrics").text
        assert 'endpoint="/recommend"' in served or "/recommend" in ended.stderr + ended.stdout
