"""A load for looking at dashboards: requests at a steady rate, for a bounded time. Standard library only.

    python scripts/load.py http://127.0.0.1:8000 --rate 20 --seconds 60

Requests leave on schedule whether or not earlier ones were answered (up to `--connections` at once), and are of
every kind: histories made from the artifact's examples, the same ones again, stored users, unknown users,
events. The last line is one JSON object: requests sent, and answers by status. It measures nothing: latency
figures come from programs in benchmarks/.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import queue
import random
import threading
import time
from typing import Any
from urllib.parse import urlsplit

Call = tuple[str, str, dict[str, Any] | None]  # method, path, body
NO_ANSWER = "none"


def ask(connection: http.client.HTTPConnection, call: Call) -> tuple[str, Any]:
    """Return (status, body) of one call; a connection that fails is closed and gives `none`."""
    method, path, body = call
    try:
        connection.request(method, path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        return str(answer.status), json.loads(answer.read() or b"null")
    except (OSError, http.client.HTTPException, ValueError):
        connection.close()
        return NO_ANSWER, None


def next_call(examples: list[list[str]], chance: random.Random) -> Call:
    """Return one request, of the kinds that a shop would send."""
    history = chance.choice(examples)
    kind = chance.random()
    user = f"user-{chance.randrange(200)}"
    if kind < 0.6:  # a history of its own: computed by the model
        shuffled = chance.sample(history, chance.randrange(1, len(history) + 1))
        return "POST", "/recommend", {"history": shuffled}
    if kind < 0.75:  # a history seen before: answered from the cache
        return "POST", "/recommend", {"history": history}
    if kind < 0.85:
        return "POST", "/recommend", {"user_id": user}
    if kind < 0.95:
        event = {"item_id": chance.choice(history), "event_id": f"{chance.getrandbits(64):x}"}
        return "POST", f"/users/{user}/events", {"events": [event]}
    return "GET", f"/items/{chance.choice(history)}", None


def worker(address: str, calls: queue.Queue[Call | None], counts: collections.Counter[str]) -> None:
    """Send what is scheduled, over one connection, until None comes."""
    connection = http.client.HTTPConnection(address, timeout=30)
    while (call := calls.get()) is not None:
        counts[ask(connection, call)[0]] += 1
    connection.close()


def run(url: str, rate: float, seconds: float, connections: int) -> dict[str, Any]:
    """Send `rate` requests a second for `seconds`; return what became of them."""
    address = urlsplit(url).netloc
    status, listed = ask(http.client.HTTPConnection(address, timeout=30), ("GET", "/artifacts", None))
    if status != "200":
        raise SystemExit(f"{url}/artifacts answers {status}; is the service ready?")
    examples = [history for history in listed["items"][0]["examples"] if history]
    counts: collections.Counter[str] = collections.Counter()
    calls: queue.Queue[Call | None] = queue.Queue(connections)
    threads = [threading.Thread(target=worker, args=(address, calls, counts)) for _ in range(connections)]
    for thread in threads:
        thread.start()
    chance, started, sent = random.Random(0), time.monotonic(), 0
    while time.monotonic() - started < seconds:
        calls.put(next_call(examples, chance))
        sent += 1
        time.sleep(max(0.0, started + sent / rate - time.monotonic()))
    for _ in threads:
        calls.put(None)
    for thread in threads:
        thread.join()
    return {"sent": sent, "answers": dict(sorted(counts.items()))}


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="Send requests at a steady rate for a bounded time.")
    parser.add_argument("url", help="address of the service, e.g. http://127.0.0.1:8000")
    parser.add_argument("--rate", type=float, default=20, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60, help="how long")
    parser.add_argument("--connections", type=int, default=16, help="requests in flight at most")
    options = parser.parse_args()
    print(json.dumps(run(options.url, options.rate, options.seconds, options.connections)), flush=True)


if __name__ == "__main__":
    main()
