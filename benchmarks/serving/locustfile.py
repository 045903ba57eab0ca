"""Load from many users with Locust: histories of the catalog, one in ten asks by user, one in twenty appends.

    locust -f benchmarks/serving/locustfile.py --host http://127.0.0.1:8000

`API_KEY` is sent as the API key. A 429 counts as a failure named "busy": it is what the service says at its limit.
"""

from __future__ import annotations

import os
import random
from typing import Any

from locust import HttpUser, between, task

ITEMS, LONGEST, KNOWN_USERS = 200, 20, 1000


class Reader(HttpUser):
    """Somebody who looks at recommendations, now and then takes one, and comes back."""

    wait_time = between(0.05, 0.5)

    def on_start(self) -> None:
        """Read what the catalog holds."""
        if key := os.environ.get("API_KEY"):
            self.client.headers["x-api-key"] = key
        page = self.client.get(f"/items?limit={ITEMS}", name="/items").json()
        self.catalog = [item["item_id"] for item in page["items"]]
        self.name = f"locust-{random.randrange(KNOWN_USERS)}"

    @task(17)
    def by_history(self) -> None:
        """Ask with a history."""
        history = random.choices(self.catalog, k=random.randint(1, LONGEST))
        self._ask("/recommend", {"history": history})

    @task(2)
    def by_user(self) -> None:
        """Ask with the stored history."""
        self._ask("/recommend", {"user_id": self.name})

    @task(1)
    def take(self) -> None:
        """Append an item."""
        event = {"item_id": random.choice(self.catalog)}
        self._ask(f"/users/{self.name}/events", {"events": [event]}, name="/users/{user_id}/events")

    def _ask(self, path: str, body: dict[str, Any], name: str | None = None) -> None:
        with self.client.post(path, json=body, name=name or path, catch_response=True) as answer:
            if answer.status_code == 429:
                answer.failure("busy")
