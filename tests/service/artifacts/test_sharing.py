"""Equal parts of real artifacts are in memory once, answers stay the same, and memory comes back."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import transformers

from modeling.backbone.pretrained import bytes_of_layers
from modeling.encoder.build import Model, Sources, build_model, read_titles
from modeling.inference.int8_linear import Precision
from modeling.methods.dense import load_artifact
from service.artifacts.loading import (
    BACKBONES,
    POOL,
    LoadedArtifact,
    _share_backbone,
    expected_bytes,
    open_artifact,
    version_on_disk,
)
from service.artifacts.memory import Pool, SharedBlock, give_memory_back, share_weights, total_bytes
from service.http.app import create_app
from service.recommend.dense import DenseRecommender
from service.service import Service
from service.settings import load_settings
from testing.artifacts import HISTORIES, write_text_artifact
from testing.models import ITEMS, TITLES, backbone_folder, small_model
from testing.products import ALL, use_products
from tests.modeling.inference.test_corrected import backbone, states, tuned

__all__ = ["backbone_folder", "small_model"]  # fixtures

Build = Callable[..., Model]


@pytest.fixture
def two(small_model: Build, tmp_path: Path) -> tuple[Path, Path]:
    """Two artifacts on one backbone and one catalog, with adapters of their own."""
    return (
        write_text_artifact(small_model("titles", seed=1), tmp_path / "one"),
        write_text_artifact(small_model("titles", seed=2), tmp_path / "two"),
    )


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    held = set(POOL._pieces)  # by other tests of this process
    yield
    gc.unfreeze()  # a whole service freezes what it has loaded
    gc.collect()
    assert set(POOL._pieces) <= held, "the pool keeps nothing alive"


def vectors(parts: LoadedArtifact) -> np.ndarray:
    return parts.encoder.encode([parts.encoder.prepare(history) for history in HISTORIES])


def test_what_is_equal_is_one_object_and_what_differs_is_not(two: tuple[Path, Path]) -> None:
    alone = vectors(open_artifact(two[1], "cpu"))
    gc.collect()
    one, other = (open_artifact(folder, "cpu") for folder in two)
    assert one.catalog is other.catalog and one.encoder.prompts.titles is other.encoder.prompts.titles
    assert one.index is not other.index, "their item vectors differ"
    shared = {id(piece) for piece in one.pieces} & {id(piece) for piece in other.pieces}
    kinds = {piece.kind for piece in one.pieces if id(piece) in shared}
    assert kinds == {"catalog", "title_tokens", "weights"}
    words = [parts.encoder.backbone.get_input_embeddings().weight for parts in (one, other)]  # type: ignore[operator]
    assert words[0].data_ptr() == words[1].data_ptr()
    assert total_bytes([one.pieces, other.pieces]) < total_bytes([one.pieces]) + total_bytes([other.pieces])
    np.testing.assert_array_equal(vectors(other), alone)
    assert not np.allclose(vectors(one), vectors(other)), "the adapters are still their own"


def test_a_part_lives_as_long_as_anyone_uses_it(two: tuple[Path, Path]) -> None:
    one, other = (open_artifact(folder, "cpu") for folder in two)
    gone = weakref.ref(one.encoder)
    del one
    gc.collect()
    assert gone() is None
    third = open_artifact(two[0], "cpu")
    assert third.catalog is other.catalog, "found again, though the first to bring it is gone"


def test_a_catalog_that_differs_in_one_number_is_another_one(small_model: Build, tmp_path: Path) -> None:
    one = open_artifact(write_text_artifact(small_model("titles"), tmp_path / "one"), "cpu")
    other = open_artifact(write_text_artifact(small_model("titles"), tmp_path / "two", shuffled_popularity=True), "cpu")
    assert one.catalog is not other.catalog and one.index is other.index


def test_title_vectors_and_the_network_that_reads_titles_are_shared_and_counted(
    small_model: Build, tmp_path: Path
) -> None:
    spec = small_model("compressed").spec
    text = read_titles(spec, TITLES, Sources())
    one, other = (
        open_artifact(
            write_text_artifact(build_model(spec, catalog_size=ITEMS, titles=TITLES, text=text), tmp_path / name), "cpu"
        )
        for name in ("one", "two")
    )
    assert {piece.kind for piece in one.pieces} == {"catalog", "index", "weights", "title_reader"}
    readers = [{id(piece) for piece in parts.pieces if piece.kind == "title_reader"} for parts in (one, other)]
    assert readers[0] == readers[1]
    assert one.encoder.read_titles(["red lamp"])[0].text_vector is not None


def test_weights_are_compared_by_content_type_and_shape() -> None:
    def linear(value: float, dtype: torch.dtype = torch.float32, shape: tuple[int, int] = (64, 64)) -> Any:
        layer = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=dtype)
        torch.nn.init.constant_(layer.weight, value)
        return layer

    pool = Pool()
    first, twin, other = linear(1.0), linear(1.0), linear(1.5)
    flat, half, small = linear(1.0, shape=(32, 128)), linear(1.0, torch.float16), linear(1.0, shape=(4, 4))
    kept = [share_weights(pool, layer, "weights") for layer in (first, twin, other, flat, half, small)]
    assert first.weight.data_ptr() == twin.weight.data_ptr()
    assert len({id(piece) for pieces in kept for piece in pieces}) == 4 and kept[5] == []
    assert kept[0][0].bytes == 64 * 64 * 4 and kept[4][0].bytes == 64 * 64 * 2
    bf16 = torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    assert share_weights(pool, bf16, "weights")[0].bytes == 64 * 64 * 2


def test_layers_that_are_cut_off_take_no_memory(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    names = ("embed_tokens.weight", "model.layers.0.mlp.weight", "model.layers.1.mlp.weight", "lm_head.weight")
    save_file({name: torch.zeros(2**place) for place, name in enumerate(names)}, tmp_path / "model.safetensors")
    assert [bytes_of_layers(tmp_path / "model.safetensors", layers) for layers in (1, 2, 30)] == [44, 60, 60]


def test_the_expected_size_counts_only_what_is_not_there_yet(two: tuple[Path, Path]) -> None:
    fresh = expected_bytes(two[1], frozenset())
    one = open_artifact(two[0], "cpu")
    assert 0 < expected_bytes(two[1], one.files) < fresh
    assert expected_bytes(two[0], one.files) == 0
    assert expected_bytes(two[0].parent / "nothing", frozenset()) == 0
    assert version_on_disk(two[0]) == one.version and version_on_disk(two[0].parent / "nothing") is None


def test_memory_that_is_held_in_a_circle_comes_back_even_when_frozen() -> None:
    class Model:
        pass

    model: Any = Model()
    model.itself = model
    gone = weakref.ref(model)
    gc.collect()
    gc.freeze()
    del model
    gc.collect()
    assert gone() is not None, "frozen"
    give_memory_back(gone)
    assert gone() is None
    gc.unfreeze()
    assert SharedBlock("weights", None, 1).bytes == 1


async def test_swaps_of_real_artifacts_answer_as_their_files_say_and_leave_nothing(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    expected = {}
    for folder in two:
        parts = open_artifact(folder, "cpu")
        _, rows = parts.index.search(vectors(parts)[:1], 5, exclude=[np.array(HISTORIES[0])])
        expected[parts.version] = [parts.catalog.item_ids[row] for row in rows[0]]
        del parts
    service = Service(load_settings(
        artifacts=two[:1], artifacts_root=tmp_path, store="sqlite:///:memory:", warmup_requests=2,
    ))  # fmt: skip
    await service.start()
    assert service.loading is not None
    await service.loading
    models = []
    transport = httpx.ASGITransport(create_app(service))
    operator = {"content-type": "application/json", "x-api-key": service.start_key or ""}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=operator) as client:
        for number in range(4):
            models.append(weakref.ref(service.recommender("one").parts.encoder))
            shutil.rmtree(tmp_path / "kept", ignore_errors=True)
            (tmp_path / "one").rename(tmp_path / "kept")
            (tmp_path / "two").rename(tmp_path / "one")
            (tmp_path / "kept").rename(tmp_path / "two")
            loaded = (await client.post("/artifacts/one/load")).json()
            assert loaded["changed"], number
            answer = (await client.post("/recommend", json={"history": ["i3"], "k": 5, "exclude_seen": True})).json()
            assert answer["artifact"]["version"] == loaded["version"]
            assert [item["item_id"] for item in answer["items"]] == expected[loaded["version"]]
            assert not (await client.post("/artifacts/one/load")).json()["changed"], "loaded already"
        beside = (await client.post("/artifacts/two/load")).json()
        rows = (await client.get("/artifacts")).json()
        assert {share["part"] for share in rows["items"][0]["shares"]} == {"catalog", "title_tokens", "weights"}
        assert rows["bytes"] == beside["bytes"] < sum(row["bytes"] for row in rows["items"])
    await service.close()
    assert [model() for model in models] == [None] * 4, "old models are gone without a collection"
    del service, client, transport


@pytest.mark.parametrize(("precision", "products"), ALL)
async def test_a_language_model_serves_fast_and_in_every_precision(
    precision: Precision, products: str, small_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its golden answers are checked at the start; the vectors are those of the plain forward."""
    use_products(products, monkeypatch)
    folder = write_text_artifact(small_model("titles", seed=1), tmp_path / "one")
    plain = load_artifact(folder).encoder
    assert plain.fast is None
    service = Service(load_settings(
        artifacts=(folder,), store="sqlite:///:memory:", precision=precision, precision_forced=True, lanes=2,
    ))  # fmt: skip
    await service.start()
    assert service.loading is not None
    await service.loading
    recommender = next(iter(service.registry.recommenders.values()))
    assert isinstance(recommender, DenseRecommender)
    encoder = recommender.parts.encoder
    assert encoder.fast is not None
    assert encoder.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    assert encoder.exact == (precision == "fp32")
    prompts = [plain.prepare(history) for history in ([1], [3, 5, 7, 0, 2], list(range(ITEMS)), [4, 4])]
    expected_BD, found_BD = plain.encode(prompts), encoder.encode(prompts)
    await service.close()
    del service, recommender, encoder
    if precision == "fp32":
        np.testing.assert_allclose(found_BD, expected_BD, atol=2e-5)
    assert ((expected_BD * found_BD).sum(1) > 0.999).all()


def test_a_writer_reads_the_weights_of_a_dense_model_from_the_same_backbone() -> None:
    """Dense model, writer and the untuned model that grounds its texts: one set of maps and two small differences."""
    base = backbone()
    config = base.config
    dense, writes = tuned(base, 1), tuned(base, 2)
    writer = transformers.Qwen3ForCausalLM(config).eval().requires_grad_(False)
    writer.model = writes
    before = states(writes)
    pool = Pool()
    held = share_weights(pool, dense, "weights")
    BACKBONES.add(dense)
    _share_backbone([base.requires_grad_(False), writer.model])
    torch.testing.assert_close(states(writes), before, atol=2e-5, rtol=0)
    pieces = [share_weights(pool, writes, "weights"), share_weights(pool, base, "title_space")]
    maps = [each for each in dense.modules() if type(each) is torch.nn.Linear]
    size = sum(each.weight.nbytes for each in maps)
    more = total_bytes([held, *pieces]) - total_bytes([held])
    assert 0 < more < 0.5 * size, "without sharing it would be twice all maps"
    del dense, maps, held
    gc.collect()
    assert not BACKBONES, "a model that is gone is no one's twin; its weights live as long as a writer reads them"
    torch.testing.assert_close(states(writes), before, atol=2e-5, rtol=0)


def test_a_small_transformer_of_its_own_is_exact_in_eight_bits_too(small_model: Build, tmp_path: Path) -> None:
    """It is not rounded, so its golden vectors are checked, and shared between replicas, as in fp32."""
    parts = open_artifact(write_text_artifact(small_model("ids"), tmp_path / "ids"), "cpu", "int8")
    assert isinstance(parts, LoadedArtifact) and parts.encoder.exact and parts.precision == "fp32"
