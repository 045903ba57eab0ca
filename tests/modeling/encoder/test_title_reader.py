"""Title vectors: any layer and pooling of a model, the same in every batch, and read once for many runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from modeling.backbone.loading import BackboneError, TextTokenizer, load_text_model, load_tokenizer
from modeling.encoder.build import Sources, read_titles, title_reader
from modeling.encoder.title_reader import TitleReader, read_or_reuse
from modeling.spec import BackboneSpec, ItemsSpec, ModelSpec
from testing.models import TITLES

Folder = Callable[[str], Path]


def spec_of(folder: Path, **items: Any) -> ModelSpec:
    return ModelSpec(backbone=BackboneSpec(source=str(folder)), items=ItemsSpec(text_dim=8, **items))


WEIGHTS: dict[str, Callable[[int], list[float]]] = {
    "mean": lambda length: [1] * length,
    "weighted_mean": lambda length: list(range(1, length + 1)),
    "last": lambda length: [0] * (length - 1) + [1],
    "last_n": lambda length: [0] * (length - 4) + [1] * min(4, length),
}


@pytest.mark.parametrize("pooling", sorted(WEIGHTS))
@pytest.mark.parametrize("layer", [1, 2])
def test_a_vector_is_the_pooled_states_of_the_layer_whatever_shares_the_batch(
    pooling: Any, layer: int, backbone_folder: Folder
) -> None:
    folder = backbone_folder("llama")
    found = title_reader(spec_of(folder, text_layer=layer, text_pooling=pooling), Sources())(TITLES)
    body, _ = load_text_model(str(folder), layers=layer)
    for title, vector in zip(TITLES, found, strict=True):
        ids = TextTokenizer(load_tokenizer(str(folder)))([title])
        with torch.inference_mode():
            states_TH = body(input_ids=torch.tensor(ids)).last_hidden_state[0]
        weights = torch.tensor(WEIGHTS[pooling](len(states_TH)), dtype=torch.float32)
        np.testing.assert_allclose(vector, F.normalize(weights @ states_TH, dim=0).numpy(), atol=1e-5)


def test_an_end_token_is_put_behind_a_title_where_it_is_pooled(backbone_folder: Folder) -> None:
    folder = backbone_folder("llama")
    ends = TextTokenizer(load_tokenizer(str(folder))).ends[1]
    body, _ = load_text_model(str(folder))
    assert ends
    eos = title_reader(spec_of(folder, text_pooling="eos"), Sources())
    with torch.inference_mode():
        ids = TextTokenizer(load_tokenizer(str(folder)))([TITLES[0]])[0] + ends
        expected = F.normalize(body(input_ids=torch.tensor([ids])).last_hidden_state[0, -1], dim=0)
    np.testing.assert_allclose(eos([TITLES[0]])[0], expected.numpy(), atol=1e-5)


def test_more_layers_than_there_are_is_refused(backbone_folder: Folder) -> None:
    with pytest.raises(BackboneError, match=r"items\.text_layer=3, but .* has 2 layers"):
        title_reader(spec_of(backbone_folder("llama"), text_layer=3), Sources())


def test_titles_are_read_once_for_many_runs(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(TitleReader, "__call__", _counting(TitleReader.__call__, read))
    sources, folder = Sources(vectors=tmp_path / "kept"), backbone_folder("llama")

    def vectors(titles: list[str], source: Path = folder, **items: Any) -> np.ndarray:
        found = read_titles(spec_of(source, **items), titles, sources)
        assert found is not None
        return found.vectors_NC

    first = vectors(TITLES)
    np.testing.assert_array_equal(vectors(TITLES), first)
    assert read == [len(TITLES)]
    for number, changed in enumerate(({"text_layer": 1}, {"text_pooling": "last"}), start=2):
        assert not np.allclose(vectors(TITLES, **changed), first)
        assert len(read) == number
    vectors([*TITLES[:-1], "red rug"])
    vectors(TITLES, backbone_folder("qwen3"))
    assert len(read) == 5 and not list((tmp_path / "kept").glob(".*"))


def _counting(call: Any, read: list[int]) -> Any:
    def counted(self: TitleReader, titles: list[str], **options: Any) -> Any:
        read.append(len(titles))
        return call(self, titles, **options)

    return counted


class Counted(TitleReader):
    """Notes what it reads, and may fail at a title."""

    def __init__(self, reader: TitleReader, fails_at: str | None = None) -> None:
        self.__dict__.update(vars(reader))
        self.seen, self.fails_at = list[str](), fails_at

    def __call__(self, titles: Sequence[str], **options: Any) -> NDArray[np.float32]:
        if self.fails_at in titles:
            raise KeyboardInterrupt
        self.seen.extend(titles)
        return super().__call__(titles, **options)


def test_titles_are_read_in_parts_once_by_whoever_comes(
    tmp_path: Path, backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modeling.encoder.title_reader.PART", 3)
    titles = [f"{title} {number}" for number in range(3) for title in TITLES[:4]]
    reader = title_reader(spec_of(backbone_folder("llama")), Sources())
    ended = Counted(reader, fails_at=titles[7])
    with pytest.raises(KeyboardInterrupt):
        read_or_reuse(ended, titles, tmp_path)
    both = [Counted(reader), Counted(reader)]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda each: read_or_reuse(each, titles, tmp_path), both))
    assert ended.seen == titles[:6] and sorted(both[0].seen + both[1].seen) == sorted(titles[6:])
    for vectors_NC in found:
        np.testing.assert_allclose(vectors_NC, reader(titles), atol=1e-5)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"], "parts are gone"
