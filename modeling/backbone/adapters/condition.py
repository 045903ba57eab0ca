"""Input of a request for a gated adapter, handed to its layers around a forward.

The layers lie deep in a backbone whose forward takes no further argument. A context variable carries the condition to
them: threads that run forwards of the same model side by side each see their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from torch import Tensor

_CONDITION_BC: ContextVar[Tensor | None] = ContextVar("condition", default=None)


@contextlib.contextmanager
def conditioned_on(condition_BC: Tensor | None) -> Iterator[None]:
    """Forwards inside see ``condition_BC``, one row a row of their batch; None: there is none."""
    token = _CONDITION_BC.set(condition_BC)
    try:
        yield
    finally:
        _CONDITION_BC.reset(token)


def condition() -> Tensor | None:
    """The condition [B, C] of the forward that is running."""
    return _CONDITION_BC.get()
