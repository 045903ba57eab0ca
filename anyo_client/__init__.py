"""A client of the HTTP API, typed, blocking and for asyncio: ``pip install 'anyo[client]'``.

```python
from anyo_client import Client

with Client("http://127.0.0.1:8000") as anyo:
    print([item.title for item in anyo.recommend(["d-004", "d-211"], k=5).items])
```
"""

from __future__ import annotations

from anyo_client.answers import (
    Appended,
    Artifact,
    ArtifactName,
    Explanation,
    Feedback,
    GeneratedText,
    Item,
    Ranking,
    Recommendation,
    RecommendedItem,
    SearchPage,
    Similar,
    Step,
    User,
    WrittenRecommendation,
)
from anyo_client.client import Client
from anyo_client.client_async import AsyncClient
from anyo_client.errors import AnyoError, NotReachedError
from anyo_client.retries import Retries

__all__ = [
    "AnyoError",
    "Appended",
    "Artifact",
    "ArtifactName",
    "AsyncClient",
    "Client",
    "Explanation",
    "Feedback",
    "GeneratedText",
    "Item",
    "NotReachedError",
    "Ranking",
    "Recommendation",
    "RecommendedItem",
    "Retries",
    "SearchPage",
    "Similar",
    "Step",
    "User",
    "WrittenRecommendation",
]
