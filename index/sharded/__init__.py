"""A vector index whose rows lie in several shards: a search asks all of them and merges what each has found.

Shard i of S holds the rows i, i + S, i + 2 S, …, so that shards are equally large whatever the order of the catalog.
Inside a shard a row has a *place*, row // S; places are in the order of rows, so that equal scores come in ascending
row order from every shard, and after the merge from all of them together. How a shard is asked is not known here.
"""

from index.sharded.shard import IndexShard, ReadShard, SearchShard, ShardAnswer, ShardCall
from index.sharded.whole import Scatter, ShardedIndex

__all__ = ["IndexShard", "ReadShard", "Scatter", "SearchShard", "ShardAnswer", "ShardCall", "ShardedIndex"]
