"""Builds an inverted file from vectors on disk and measures the recall that it states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from index.base import FloatArray, FolderEntry, IndexSpec, SearchError
from index.build import recall_of, sampled_queries
from index.ivf.cells import IvfIndex, IvfSpec
from index.ivf.streamed import StreamedBuild
from index.kinds import index_class
from index.storage import map_unfinished, put_in_place, unfinished_file


def build_streamed(
    spec: IndexSpec,
    source: Path,
    folder: Path,
    memory_mib: int,
    queries_QD: FloatArray | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> FolderEntry:
    """Build an inverted file over the vectors of a safetensors file, in shards and within a memory limit, and write it.

    Args:
        spec: of a kind that is built in parts (``ivf-fastscan``, ``ivf-pq``, ``ivf-sq``).
        source: one tensor [N, D].
        folder: where it goes; a build that was killed there goes on.
        memory_mib: limit on training sample and shards. Codes and rows come on top of it once, while the recall is
            measured; the vectors stay on disk.
        queries_QD: user vectors to measure the recall with; None: item vectors with noise.
        say: is told of the progress.

    Raises:
        SearchError: another kind, a limit that is too low, or a vector that is not finite.
        IndexFolderError: the file cannot be read.
    """
    kind = index_class(spec.kind)
    if not issubclass(kind, IvfIndex) or not isinstance(spec, IvfSpec):
        raise SearchError(
            f"kind {spec.kind!r} is not built in parts; ivf-fastscan, ivf-pq and ivf-sq are. Leave the limit out"
        )
    build = StreamedBuild(kind, spec, source, folder, memory_mib)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_file(folder)
    build.run(unfinished, say)
    say("measuring recall")
    index = map_unfinished(unfinished, spec, build.vectors.size, build.vectors.dim)
    if queries_QD is None:
        queries_QD = sampled_queries(build.vectors)
        index.recall_queries = "items"
    else:
        index.recall_queries = "users"
    index.recall_at_10 = recall_of(index, queries_QD, build.vectors)
    entry = put_in_place(index, folder)
    build.finish()
    return entry
