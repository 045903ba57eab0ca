"""A replica that holds one shard of an index. Imports no torch: shards are many, and need none."""

from __future__ import annotations

from pathlib import Path

from index.sharded import IndexShard, ShardAnswer, ShardCall
from index.storage import ENTRY_FILE, open_index, sha256_of


class ShardReplica:
    """Searches the rows ``number``, ``number + count``, … of the index in ``folder``.

    ``entry_sha256`` is the hash of index.json that the artifact's manifest states; index.json states that of the
    index. A folder that holds another version by now is refused, also when a replica is started again later.
    """

    def __init__(self, folder: str, entry_sha256: str, number: int, count: int) -> None:
        place = Path(folder) / "index"
        if (found := sha256_of(place / ENTRY_FILE)) != entry_sha256:
            raise ValueError(f"{place / ENTRY_FILE} has sha256 {found[:12]}…, and {entry_sha256[:12]}… is to be served")
        self._shard = IndexShard.of(open_index(place, mapped=True), number, count)

    async def answer(self, call: ShardCall) -> ShardAnswer:
        """Answer one question; one at a time, since a shard has a core to itself."""
        return self._shard.answer(call)
