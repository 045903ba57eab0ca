"""Work in a thread that may be left behind: one that never ends must not hold up others, nor the end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

T = TypeVar("T")


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Return or raise what `work` does, in a thread of its own; after a cancellation its result is dropped."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    outcome: list[tuple[T | None, BaseException | None]] = []

    def settle(result: T | None, error: BaseException | None) -> None:
        if not ended.done():
            outcome.append((result, error))
            ended.set_result(None)

    def run() -> None:
        result, failed = None, None
        try:
            result = work(*arguments)
        except Exception as error:
            failed = error
        except BaseException as error:  # a panic of a library in Rust
            failed = RuntimeError(f"{type(error).__name__}: {error}")
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, failed)
        del result, failed  # an error holds this frame, and with it everything that it was raised over

    threading.Thread(target=run, name="load", daemon=True).start()
    await ended
    result, error = outcome.pop()
    if error is None:
        return cast(T, result)
    try:
        raise error
    finally:
        # The error holds this frame. Without a circle, what it was raised over goes as soon as the error does.
        del error
