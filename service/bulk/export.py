"""Recommendations for all users as parquet files, by the engine that answers requests.

The users are listed once, when an export begins, and cut into parts. A part is written under another name and renamed
when it is whole, so that an export that was killed goes on with the parts that are missing: no user is left out and
none comes twice. Several processes, on one machine or on several that share the folder, divide the parts among them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from index.command_line.one_writer import BeingWrittenError, one_writer
from index.command_line.shared_parts import LOOK_S, parts_to_make
from index.filters.language import Filter
from index.live_catalog import LiveCatalog
from service.bulk.histories import Histories
from service.errors import AnyoError, StartError
from service.recommend.base import Recommendation
from service.recommend.dense import DenseRecommender
from service.recommend.requests import RecommendQuery
from service.service import Service
from service.settings.store_kinds import shown

PLAN, USERS, FORMAT = "recommendations.json", "users.parquet", 1
LONG_S = 7 * 86_400.0  # nobody waits for an answer; what the engine refuses under load is tried again
LISTING_S = 60.0
USERS_AT_ONCE = 1000
Say = Callable[[str], None]
SCHEMA = {
    "user_id": pl.String, "rank": pl.Int32, "item_id": pl.String, "score": pl.Float32, "source": pl.String,
}  # fmt: skip


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export: items per user, exclusion of the history's items, users per file, and filter of items."""

    k: int = 10
    exclude_seen: bool = True
    part_users: int = 10_000
    filter: Filter | None = None


async def export(service: Service, histories: Histories | None, out: Path, options: ExportOptions, say: Say) -> int:
    """Write the recommendations of the default dense artifact for all users, and return how many users they are.

    Args:
        service: started, its artifact loaded.
        histories: whose; None: the users of the service's store.
        out: folder of the parts; an export that was begun there with the same artifact, users and options goes on, also
            while other processes write it: each part is written by one of them.
        options: see `ExportOptions`.
        say: is told of the progress.

    Raises:
        StartError: another export was begun there, or a user cannot be answered; the message names it. What was written
            stays.
        BeingWrittenError: another process lists the users for longer than a minute.
    """
    recommender = service.recommender(None)
    users = await _alone(partial(_begin, service, recommender, histories, out, options, say), out)
    count = -(-len(users) // options.part_users)
    paths = [out / f"part-{number:05d}.parquet" for number in range(count)]
    with contextlib.closing(parts_to_make(paths)) as numbers:
        while (number := await asyncio.to_thread(next, numbers, None)) is not None:  # it may wait for other processes
            started, first = time.monotonic(), number * options.part_users
            these = users[first : first + options.part_users]
            table = await _part(service, recommender, histories, these, first, options)
            _replace(paths[number], table.write_parquet)
            rate = len(these) / max(time.monotonic() - started, 1e-9)
            span = f"users {first + 1:,} to {first + len(these):,} of {len(users):,}"
            say(f"part {number + 1} of {count}: {span} ({rate:,.0f} a second)")
    return len(users)


async def _alone(begin: Callable[[], Awaitable[Sequence[str]]], out: Path) -> Sequence[str]:
    """Return what ``begin`` gives, while no other process begins."""
    end = time.monotonic() + LISTING_S
    while True:
        try:
            with one_writer(out):
                return await begin()
        except BeingWrittenError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(LOOK_S)


async def _begin(
    service: Service,
    recommender: DenseRecommender,
    histories: Histories | None,
    out: Path,
    options: ExportOptions,
    say: Say,
) -> Sequence[str]:
    """Return the users, listed now or when the export was begun."""
    parts = recommender.parts
    source: list[Any] = ["store", shown(service.settings.store)]
    if histories is not None:
        stat = histories.source.stat()
        source = ["data", stat.st_size, stat.st_mtime_ns]
    plan = {
        "format": FORMAT, "artifact": parts.name, "version": parts.version, "k": options.k,
        "exclude_seen": options.exclude_seen, "part_users": options.part_users, "source": source,
        **({"filter": repr(options.filter)} if options.filter is not None else {}),
    }  # fmt: skip
    before = out / PLAN
    if before.is_file():
        found = json.loads(before.read_text(encoding="utf-8"))
        if found != plan:
            differing = next(name for name in {**found, **plan} if found.get(name) != plan.get(name))
            raise StartError(
                f"{out} holds an export with another {differing.replace('_', ' ')} ({found.get(differing)!r:.80}, now "
                f"{plan.get(differing)!r:.80}); name another folder, or remove that one"
            )
        say(f"going on with the export in {out}")
        listed: list[str] = pl.read_parquet(out / USERS)["user_id"].to_list()
        return listed
    users = histories.users["user_id"].to_list() if histories is not None else await _users_of_store(service)
    out.mkdir(parents=True, exist_ok=True)
    _replace(out / USERS, pl.DataFrame({"user_id": users}, schema={"user_id": pl.String}).write_parquet)
    _replace(before, lambda path: Path(path).write_text(json.dumps(plan) + "\n", encoding="utf-8"))
    return users


async def _users_of_store(service: Service) -> list[str]:
    """All users, in the order of their ids; one who is active meanwhile may come twice in the list of the store."""
    found: set[str] = set()
    after: str | None = None
    while True:
        page = await service.store.users("", USERS_AT_ONCE, after=after)
        found.update(user.user_id for user in page.rows)
        if page.next is None:
            return sorted(found)
        after = page.next


async def _part(
    service: Service,
    recommender: DenseRecommender,
    histories: Histories | None,
    users: Sequence[str],
    first: int,
    options: ExportOptions,
) -> pl.DataFrame:
    deadline = time.monotonic() + LONG_S
    queries = list(_queries(recommender, histories, users, first, options))
    entries = [partial(recommender.recommend, query, deadline) for query in queries]
    answers = await service.batches.run(entries, deadline)
    catalog = recommender.catalog
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA}
    for user, answer in zip(users, answers, strict=True):
        if isinstance(answer, AnyoError):
            raise StartError(f"user {user!r:.100} cannot be answered: {answer.message}")
        _append(columns, user, recommender.shown(answer), catalog)
    return pl.DataFrame(columns, schema=SCHEMA)


def _append(columns: dict[str, list[Any]], user: str, answer: Recommendation, catalog: LiveCatalog) -> None:
    if answer.degraded:
        raise StartError(f"user {user!r:.100} cannot be answered: {answer.degraded[0]} was not available")
    count = len(answer.rows)
    columns["user_id"] += [user] * count
    columns["rank"] += range(1, count + 1)
    columns["item_id"] += [catalog.item_ids[row] for row in answer.rows]
    columns["score"] += answer.scores
    columns["source"] += ["popular" if answer.source == "popular" else "model"] * count


def _queries(
    recommender: DenseRecommender,
    histories: Histories | None,
    users: Sequence[str],
    first: int,
    options: ExportOptions,
) -> Iterator[RecommendQuery]:
    if histories is None:
        for user in users:
            yield RecommendQuery((), user, options.k, options.exclude_seen, filter=options.filter)
        return
    row = recommender.parts.catalog.row
    for user, items, _ in histories.part(first, len(users)):
        # A user of whom no item is in the catalog is asked for by id, and gets popular items as a new user does.
        unknown = not any(row(item) is not None for item in items)
        yield RecommendQuery(
            () if unknown else items, user if unknown else None, options.k, options.exclude_seen, filter=options.filter
        )


def _replace(path: Path, write: Callable[[Any], Any]) -> None:
    part = path.with_name(path.name + ".part")
    write(part)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
