"""Memory that artifacts of one process share, and how much each of them takes.

A part is shared when its *content* is the same, whichever file it came from: two artifacts of one backbone share
every weight that their adapters left alone, two artifacts of one data set share catalog and title vectors. That
is sound because nothing that is served is written to after it has been loaded. The pool itself keeps nothing
alive: what no artifact uses any more is gone.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import nn

from index import Catalog, ItemIndex
from modeling.artifact.part_names import Part
from modeling.encoder.prompt import TitleTokens
from modeling.torch_private import tensor_tables

SMALLEST_SHARED = 4096  # bytes; below that, looking for a twin costs more than it saves
ROW_OVERHEAD = 200  # bytes of Python's own for an item: places in tuples and in the table from id to row


class SharedBlock:
    """One part in memory, held by every artifact that uses it."""

    __slots__ = ("__weakref__", "bytes", "kind", "value")

    def __init__(self, kind: str, value: Any, size: int) -> None:
        """Raises ValueError for a `kind` that the API does not publish."""
        self.kind = Part(kind)
        self.value = value
        self.bytes = size


class Pool:
    """Pieces by content. Safe to use from several threads."""

    def __init__(self) -> None:
        self._pieces: weakref.WeakValueDictionary[Hashable, SharedBlock] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def share(self, key: Hashable, make: Callable[[], SharedBlock]) -> SharedBlock:
        """Return the living piece of `key`, or the new one that `make` returns."""
        with self._lock:
            piece = self._pieces.get(key)
        if piece is not None:
            return piece
        made = make()
        with self._lock:
            return self._pieces.setdefault(key, made)


def share_weights(pool: Pool, module: nn.Module, kind: str) -> list[SharedBlock]:
    """Replace every large weight and buffer of `module` by its twin in the pool, where there is one.

    Returns a piece for each of them. Call it when nothing will change the weights any more. Blocks: it reads all.
    """
    pieces: dict[int, SharedBlock] = {}
    for owner in module.modules():
        for store in tensor_tables(owner):
            for name, tensor in store.items():
                if tensor is None or tensor.numel() * tensor.element_size() < SMALLEST_SHARED:
                    continue
                piece = _share_tensor(pool, tensor, kind)
                if tensor.is_mkldnn or piece.value.data_ptr() != tensor.data_ptr():
                    if isinstance(tensor, nn.Parameter):
                        tensor.data = piece.value
                    else:
                        store[name] = piece.value
                pieces[id(piece)] = piece
    return list(pieces.values())


def _share_tensor(pool: Pool, tensor: torch.Tensor, kind: str) -> SharedBlock:
    plain = tensor.detach()
    content = (plain.to_dense() if plain.is_mkldnn else plain.contiguous().cpu()).reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(content.data).digest()
    key = ("tensor", digest, plain.dtype, tuple(plain.shape), str(plain.device), plain.is_mkldnn)
    return pool.share(key, lambda: SharedBlock(kind, plain, plain.nbytes))


def share_title_tokens(pool: Pool, titles: TitleTokens, files: Hashable) -> SharedBlock:
    """Return the piece of the catalog's tokenized titles; `files` are the hashes of what they were read from."""
    size = titles.offsets.nbytes + titles.tokens.nbytes
    return pool.share(("title_tokens", files), lambda: SharedBlock(Part.TITLE_TOKENS, titles, size))


def share_catalog(pool: Pool, files: Hashable, read: Callable[[], Catalog]) -> SharedBlock:
    """Return the piece of a catalog; `read` is called where none from files with these hashes is in memory."""

    def make() -> SharedBlock:
        catalog = read()
        return SharedBlock(Part.CATALOG, catalog, catalog_bytes(catalog))

    return pool.share(("catalog", files), make)


def share_index(pool: Pool, files: Hashable, open_it: Callable[[], ItemIndex]) -> SharedBlock:
    """Return the piece of an index (searching changes nothing in it, and may happen on several threads)."""

    def make() -> SharedBlock:
        index = open_it()
        return SharedBlock(Part.INDEX, index, index.nbytes)

    return pool.share(("index", files), make)


def catalog_bytes(catalog: Catalog) -> int:
    """Return about what a catalog takes: its texts, its numbers, and Python's own per item."""
    texts = sum(map(sys.getsizeof, catalog.item_ids)) + 2 * sum(map(sys.getsizeof, catalog.titles))
    categories = sum(sys.getsizeof(names) for names in catalog.categories)
    texts += 2 * sum(map(sys.getsizeof, catalog.attribute_texts))  # and about as much for filters
    return texts + categories + 3 * catalog.popularity.nbytes + ROW_OVERHEAD * len(catalog)


def total_bytes(artifacts: Iterable[Iterable[SharedBlock]]) -> int:
    """Return the bytes of all pieces of several artifacts, each counted once."""
    pieces = {id(piece): piece for each in artifacts for piece in each}
    return sum(piece.bytes for piece in pieces.values())


def give_memory_back(gone: weakref.ref[Any] | None = None) -> None:
    """Return what an unloaded artifact took to the operating system. Blocks for some milliseconds: use a thread.

    Counting references frees nearly all of it. Only where `gone` (its model) is still there does something refer to
    it in a circle; then the collector has to walk through everything, what was frozen at the start included, and
    all requests wait for it.
    """
    everything = gone is not None and gone() is not None
    if everything:
        gc.unfreeze()
    gc.collect()
    if everything:  # else: what a thread still holds for a moment would never be collected
        gc.freeze()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return  # not glibc
    trim(0)
