"""Parts without training: a real catalog, a real index, and an encoder whose vectors follow from a seeded
table.

The encoder has the methods of `modeling.encoder.user_encoder.UserEncoder` and is honest about them: its vector
depends on every item read and on their order, a row alone equals the row in a batch, and free titles get
vectors of their own. Knobs make it slow or faulty where a test is about that.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from index import Catalog, FlatIndex
from modeling.encoder.prompt import FreeItem, Prompt, PromptBuilder
from modeling.encoder.user_encoder import CannotReadText
from modeling.methods.dense import GoldenCase
from service.artifacts.loading import AnyLoaded, LoadedArtifact, LoadedGenerative

DIM = 16
CATEGORIES = ("mystery", "travel", "cooking")


def item_id(row: int) -> str:
    """Return the id of the item in a row of the fake catalog."""
    return f"item-{row:04d}"


class TableEncoder:
    """User vector = recency-weighted sum of the vectors of the items read."""

    def __init__(self, table_ND: np.ndarray, *, limit: int, reads_text: bool, delay_s: float = 0.0) -> None:
        self.table_ND = table_ND
        self.reads_text = reads_text
        self.delay_s = delay_s
        self.poison: int | None = None  # a row whose prompts fail
        self.fatal: int | None = None  # a row that kills the thread
        self.batches: list[list[int]] = []  # prompt lengths, as they reached the device
        self.entered = 0  # forward passes begun
        self.gate = threading.Event()  # closed: the device waits
        self.gate.set()
        self.hold: Path | None = None  # a file; while it is there the device waits, and says so in a file beside it
        self._prompts = PromptBuilder(
            form="compressed",
            vectors_per_item=1,
            catalog_size=len(table_ND),
            item_limit=limit,
            position_limit=4096,
        )

    @property
    def exact(self) -> bool:
        return True

    @property
    def history_limit(self) -> int:
        return self._prompts.item_limit

    def prepare(self, history: Sequence[int | FreeItem]) -> Prompt:
        return self._prompts.build(history)

    def read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        if not self.reads_text:
            raise CannotReadText("ids only")
        return [FreeItem(title, text_vector=_vector_of(title)) for title in titles]

    def free_vectors(self, items: Sequence[FreeItem]) -> np.ndarray:
        return np.stack([_vector_of(item.title) for item in items])

    def title_vectors(self, titles: Sequence[str]) -> np.ndarray:
        return np.stack([_vector_of(title) for title in titles])

    def encode(self, prompts: Sequence[Prompt]) -> np.ndarray:
        self.entered += 1
        self.gate.wait()
        while self.hold is not None and self.hold.exists():
            self.hold.with_suffix(".on").touch()
            time.sleep(0.005)
        self.batches.append([prompt.length for prompt in prompts])
        if self.delay_s:
            time.sleep(self.delay_s)
        rows = {int(row) for prompt in prompts for row in prompt.values_T}
        if self.fatal in rows:
            raise SystemExit("the device thread is told to die")
        if self.poison in rows:
            raise RuntimeError("poisoned row")
        return np.stack([self._encode_one(prompt) for prompt in prompts]).astype(np.float32)

    def _encode_one(self, prompt: Prompt) -> np.ndarray:
        size = len(self.table_ND)
        vectors = [
            self.table_ND[row] if row < size else prompt.free_vectors[row - size - 1]
            for row in prompt.values_T.tolist()
        ]
        weights = 0.8 ** np.arange(len(vectors))[::-1]
        summed: np.ndarray = (np.stack(vectors) * weights[:, None]).sum(0)
        return summed


def _vector_of(title: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(title.encode())).normal(size=DIM).astype(np.float32)


def make_parts(
    items: int = 200,
    *,
    name: str = "fake",
    limit: int = 50,
    reads_text: bool = True,
    delay_s: float = 0.0,
    seed: int = 7,
) -> LoadedArtifact:
    """Return a dense artifact whose encoder looks vectors up in a table; `delay_s` is how long a pass takes."""
    rng = np.random.default_rng(seed)
    table_ND = rng.normal(size=(items, DIM)).astype(np.float32)
    catalog = Catalog(
        item_ids=tuple(item_id(row) for row in range(items)),
        titles=tuple(f"Title {row} of the {CATEGORIES[row % 3]} shelf" for row in range(items)),
        categories=tuple((CATEGORIES[row % 3],) for row in range(items)),
        popularity=rng.integers(0, 1000, size=items).astype(np.int64),
        popularity_counted_on="train",
    )
    encoder = TableEncoder(table_ND, limit=limit, reads_text=reads_text)
    index = FlatIndex.build(table_ND)
    golden = tuple(_golden(encoder, index, catalog, rng) for _ in range(10))
    encoder.batches.clear()
    encoder.delay_s = delay_s
    reads = ("ids", "text") if reads_text else ("ids",)
    embed = encoder.title_vectors if reads_text else None
    return LoadedArtifact(
        name=name, version="0123456789ab", recipe="fake-recipe", reads=reads, encoder=encoder, index=index,
        catalog=catalog, golden=golden, embed=embed,
    )  # fmt: skip


def _golden(encoder: TableEncoder, index: FlatIndex, catalog: Catalog, rng: np.random.Generator) -> GoldenCase:
    rows = rng.choice(len(catalog), size=int(rng.integers(3, 12)), replace=False)
    vectors = encoder.encode([encoder.prepare(rows.tolist())])
    _, found = index.search(vectors, 10, exclude=[rows])
    return GoldenCase(
        history=[catalog.item_ids[row] for row in rows],
        vector=vectors[0].tolist(),
        top=[catalog.item_ids[row] for row in found[0] if row >= 0],
    )


def opener(parts: LoadedArtifact, generative: LoadedGenerative | None = None) -> object:
    """The `open_artifact` argument of `Service`: every folder gives these, or the generative ones by their name."""

    def open_artifact(folder: Path, device: str) -> AnyLoaded:
        return generative if generative is not None and folder.name == generative.name else parts

    return open_artifact
