"""bigrec: what is trained is what is asked, a title grounds to its own item, and weights never change the nearest."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from index import Catalog
from modeling.artifact.manifest import ArtifactError
from modeling.backbone.loading import load_text_model
from modeling.encoder.user_encoder import read_history
from modeling.generation.api import GenerationPrompt, GenerationSettings, Hypothesis, ListQuery
from modeling.generation.base import ItemIdentifiers
from modeling.generation.beam_search import BeamSettings
from modeling.generation.factory import beam_search_for
from modeling.generation.item_tokenizer import TitleTokenizer
from modeling.generation.title_space import TitleSpace
from modeling.inference.int8_linear import Precision
from modeling.inference.prepacked_linear import PrepackedLinear
from modeling.methods.base_generative import load_generative
from modeling.methods.bigrec import BigRecGenerator, Exponents
from modeling.methods.bigrec_prompt import InstructionPrompt
from service.artifacts.loading import LoadedGenerative, open_artifact
from service.artifacts.memory import total_bytes
from service.errors import StartError
from service.service import Service
from service.settings import load_settings
from testing.artifacts import assert_golden_lists
from testing.datasets import ring_dataset, trained_sasrec, write_dataset
from testing.models import TITLES, backbone_folder
from testing.products import ALL, use_products
from training.data.dataset import Dataset, read_dataset
from training.data.splits import Targets, leave_one_out
from training.item_ids.assign import load_writer
from training.loop.examples import Window
from training.methods.bigrec import InstructionModule
from training.methods.bigrec_exponents import choose_exponents
from training.methods.bigrec_reweigh import reweigh
from training.methods.next_token import ranks_in, write_all
from training.recipes import Recipe, RecipeError, get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

QUIET = Console(quiet=True)
END, LIMIT = 2, 5
Folder = Callable[[str], Path]
SETTINGS = ["history.title_tokens=6", "method.validation_users=64", "optimizer.positions=60"]


def small(folder: Path, *settings: str) -> Recipe:
    return get_recipe("bigrec", [*SETTINGS, *settings], backbone=str(folder))


def random_writer(
    folder: Path, titles: list[str] = TITLES, *, popularity: list[int] | None = None, **parts: Any
) -> BigRecGenerator:
    """An untrained writer of `titles`; its base model is the same network."""
    model, tokenizer, _ = load_writer(small(folder), None)
    spelling = TitleTokenizer(tokenizer, LIMIT)
    tokens = spelling.spell(titles, END)
    popularity_N = np.array(popularity or range(len(titles), 0, -1))
    return BigRecGenerator(
        model.eval().requires_grad_(False),
        ItemIdentifiers(tokens, np.argsort(-popularity_N, kind="stable"), spelling),
        prompt=InstructionPrompt.of(tokenizer, "items chosen", END),
        space=TitleSpace.of_catalog(load_text_model(str(folder))[0], tokens, []),
        popularity_N=popularity_N,
        history_limit=4,
        default=GenerationSettings(3, LIMIT + 2),
        **parts,
    )


def says(writer: BigRecGenerator, text: str | list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the writer believe that its best beam was `text`, or that of the prompt's newest row; grounding is real."""

    def best(prompt: GenerationPrompt) -> list[Hypothesis]:
        said = text if isinstance(text, str) else text[prompt.rows[-1]]
        rows = writer._rows.get(said, ())
        return [Hypothesis(said, -1.0, bool(rows), rows[0] if rows else None, 0.0 if rows else None)]

    monkeypatch.setattr(writer, "_texts", lambda prompts, *rest: [best(prompt) for prompt in prompts])


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2", "gemma3"])
def test_a_prompt_is_the_beginning_of_what_was_trained_on(backbone_folder: Folder, architecture: str) -> None:
    writer = random_writer(backbone_folder(architecture))
    module = InstructionModule(writer.model, writer.names.tokens, prompt=writer.prompt, dropout=0.0)
    batch = module.collate([Window(np.array([4, 7, 0, 5])), Window(np.array([1, 2]))])
    asked = [*writer.prompt.prefix, *writer.prepare([4, 7, 0]).tokens]
    answer = writer.prompt.answer(writer.names.tokens[5])
    assert batch.ids_BT[0].tolist() == [*asked, *answer][:-1]
    given = len(writer.prompt.prefix)
    assert (batch.targets_BT[:, : given - 1] == -100).all(), "the instruction has no loss"
    assert batch.targets_BT[0, given - 1 :].tolist() == [*asked, *answer][given:]
    assert writer.prepare([4, *writer.read_titles([TITLES[7]]), 0]).tokens == writer.prepare([4, 7, 0]).tokens
    assert writer.prepare([9, 3, 4, 7, 0]).tokens == writer.prepare([3, 4, 7, 0]).tokens, "only the newest are read"


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2", "llama"])
def test_what_is_written_is_what_beam_search_over_the_whole_prompt_writes(
    backbone_folder: Folder, architecture: str
) -> None:
    writer = random_writer(backbone_folder(architecture))
    histories = [[4, 7, 0], [1], [8, 8, 2, 3]]
    plain = beam_search_for(writer.model, end_tokens=[END])
    prompts = [[*writer.prompt.prefix, *writer.prepare(history).tokens] for history in histories]
    texts = plain.search(prompts, BeamSettings(beams=3, max_new_tokens=LIMIT + 2))
    together = writer.write([writer.prepare(history) for history in histories], [ListQuery(4)] * 3)
    for history, expected, written in zip(histories, texts, together, strict=True):
        (alone,) = writer.write([writer.prepare(history)], [ListQuery(4)])
        for answer in (written, alone):
            assert [text.text for text in answer.generated] == [writer._shown(text.tokens) for text in expected]
            np.testing.assert_allclose(
                [text.score for text in answer.generated], [text.score for text in expected], atol=1e-4
            )
        assert written.rows_K.tolist() == alone.rows_K.tolist()


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3", "gpt2", "opt"])
def test_a_titles_vector_is_the_base_models_last_state_alone_and_in_any_batch(
    backbone_folder: Folder, architecture: str
) -> None:
    writer = random_writer(backbone_folder(architecture))
    body = load_text_model(str(backbone_folder(architecture)))[0]
    for row in range(len(TITLES)):
        tokens = writer.names.tokens[row].tolist()
        with torch.inference_mode():
            states = cast(Any, body)(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states
        np.testing.assert_allclose(writer.space.vectors_NH[row], states[-1][0, -1], atol=1e-5)


def test_a_title_of_the_catalog_grounds_to_its_own_item_at_distance_zero(
    backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = random_writer(backbone_folder("qwen3"))
    for row, title in enumerate(TITLES):
        says(writer, title, monkeypatch)
        (written,) = writer.write([writer.prepare([3])], [ListQuery(12)])
        assert written.rows_K[0] == row and written.generated[0].distance == 0.0
        assert written.generated[0].valid and written.generated[0].row == row
        assert sorted(written.rows_K.tolist()) == list(range(12)) and written.filled == 0
        (distance_N,) = writer.read_distances([writer.prepare([3])])
        assert distance_N is not None
        space = writer.space.vectors_NH.numpy()
        np.testing.assert_allclose(distance_N, np.linalg.norm(space - space[row], axis=1), atol=1e-5)


def test_a_text_that_is_no_title_goes_to_the_nearest_and_says_how_far(
    backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = random_writer(backbone_folder("qwen3"))
    says(writer, "red rug of the garden", monkeypatch)
    (written,) = writer.write([writer.prepare([3])], [ListQuery(12)])
    body = load_text_model(str(backbone_folder("qwen3")))[0]
    tokens = writer.spelling.tokenizer("red rug of the garden")["input_ids"]
    with torch.inference_mode():
        vector = cast(Any, body)(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1].numpy()
    expected_N = np.linalg.norm(writer.space.vectors_NH.numpy() - vector, axis=1)
    assert written.rows_K.tolist() == np.argsort(expected_N).tolist()
    (text,) = written.generated
    assert not text.valid and text.row == int(expected_N.argmin())
    assert text.distance == pytest.approx(float(expected_N.min()), rel=1e-4) and text.distance > 0
    np.testing.assert_allclose(written.scores_K, -np.sort(expected_N), rtol=1e-4)


def test_titles_that_are_alike_tie_and_the_popular_one_is_first(
    backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = random_writer(backbone_folder("qwen3"), [*TITLES[:4], TITLES[1]], popularity=[5, 1, 3, 4, 2])
    says(writer, TITLES[1], monkeypatch)
    (written,) = writer.write([writer.prepare([0])], [ListQuery(5)])
    assert written.rows_K[:2].tolist() == [4, 1] and written.scores_K[0] == written.scores_K[1] == 0


def test_nothing_excluded_comes_back_and_an_empty_text_is_answered_with_popular_items(
    backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = random_writer(backbone_folder("qwen3"))
    says(writer, TITLES[6], monkeypatch)
    never, only = np.array([6, 2]), np.arange(1, 9)
    (written,) = writer.write([writer.prepare([3])], [ListQuery(3, never, only)])
    (whole,) = writer.write([writer.prepare([3])], [ListQuery(12)])
    left = [row for row in whole.rows_K.tolist() if row in only and row not in never]
    assert written.rows_K.tolist() == left[:3]
    says(writer, "", monkeypatch)
    (empty,) = writer.write([writer.prepare([3])], [ListQuery(3, never)])
    assert empty.rows_K.tolist() == [0, 1, 3] and empty.filled == 3
    assert empty.generated[0].distance is None and not empty.generated[0].valid


def test_no_exponent_changes_the_nearest_and_zero_changes_nothing(
    backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    scores_N = rng.normal(size=len(TITLES)).astype(np.float32)
    writer = random_writer(backbone_folder("qwen3"), popularity=rng.integers(1, 99, 12).tolist())
    writer.collaborative = lambda history: scores_N
    says(writer, TITLES[6], monkeypatch)
    order = {}
    for pair in (Exponents(), Exponents(0.5), Exponents(99.0), Exponents(0, 5.0), Exponents(30.0, 99.0)):
        writer.exponents = pair
        for row in (*range(12), 6):
            says(writer, TITLES[row], monkeypatch)
            (written,) = writer.write([writer.prepare([3])], [ListQuery(12)])
            assert written.rows_K[0] == row and (np.diff(written.scores_K) <= 0).all()
        order[pair] = written.rows_K.tolist()
    assert order[Exponents(99.0)] != order[Exponents()]
    assert order[Exponents(0, 5.0)] != order[Exponents()]
    far = order[Exponents(0, 5.0)].index(int(scores_N.argmax()))
    assert far < order[Exponents()].index(int(scores_N.argmax())) or far <= 1
    even = random_writer(backbone_folder("qwen3"), popularity=[4] * 12, exponents=Exponents(7.0))
    says(even, TITLES[6], monkeypatch)
    (written,) = even.write([even.prepare([3])], [ListQuery(12)])
    assert written.rows_K.tolist() == order[Exponents()], "equal weights move nothing"


class _Told:
    """Targets with given histories."""

    def __init__(self, histories: list[list[int]], rows: list[int]) -> None:
        self._histories, self.rows_T = [np.array(history, np.int32) for history in histories], np.array(rows)

    def __len__(self) -> int:
        return len(self.rows_T)

    def histories(self) -> list[NDArray[Any]]:
        return self._histories


@pytest.mark.parametrize("weighs_scores", [False, True])
def test_the_exponents_chosen_are_those_whose_answers_are_best(
    weighs_scores: bool, backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against brute force: every pair set in turn, real answers written, their NDCG@10 compared."""
    grid = (0.0, 0.3, 2.0, 20.0)
    monkeypatch.setattr("training.methods.bigrec_exponents.GRID", grid)
    rng = np.random.default_rng(3)
    histories = [[*rng.choice(12, 2).tolist(), last] for last in range(12)]
    rows = [int(rng.choice([row for row in range(12) if row not in history])) for history in histories]
    writer = random_writer(backbone_folder("qwen3"), popularity=rng.integers(1, 99, 12).tolist())
    scores = rng.normal(size=(12, 12)).astype(np.float32)  # of all items, by the newest item of a history
    for history, row in zip(histories, rows, strict=True):
        scores[history[-1], row] += 2.0  # a collaborative model that knows something
    if weighs_scores:
        writer.collaborative = lambda history: scores[history[-1]]
    says(writer, [*TITLES[4:8], "red chair", "wool table", "", *TITLES[:5]], monkeypatch)
    targets = cast(Targets, _Told(histories, rows))
    report = choose_exponents(writer, targets, console=QUIET)["exponents"]
    chosen, found = writer.exponents, {}
    for pair in itertools.product(grid, grid if weighs_scores else (0.0,)):
        writer.exponents = Exponents(*pair)
        ranks = ranks_in(write_all(writer, list(targets.histories())), targets.rows_T, 12)
        found[writer.exponents] = float(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).mean())
    assert found[chosen] == pytest.approx(report["ndcg@10"]) == pytest.approx(max(found.values()))
    assert (chosen.collaborative > 0) == weighs_scores, "scores that know the answers are weighed"
    assert found[Exponents()] == pytest.approx(report["unweighted_ndcg@10"])


def test_a_prompt_that_the_backbone_cannot_hold_is_refused(
    backbone_folder: Folder, ring: Dataset, tmp_path: Path
) -> None:
    recipe = small(backbone_folder("qwen3"), "history.limit=40")
    with pytest.raises(RecipeError, match=r"takes up to \d+ positions, and .* reads 256"):
        run(recipe, ring, RunOptions(out=tmp_path / "x"), QUIET)
    with pytest.raises(RecipeError, match="method 'bigrec' writes titles"):
        get_recipe("bigrec", ["history.form=ids"])
    with pytest.raises(RecipeError, match="'bigrec' writes with a causal language model: backbone 'minilm'"):
        get_recipe("bigrec", backbone="minilm")


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=96)


@pytest.fixture(scope="module")
def sasrec(ring: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_sasrec(
        ring, tmp_path_factory.mktemp("artifacts"), ["optimizer.epochs=8", "items.dim=32", "backbone.width=32"]
    )


@pytest.fixture(scope="module")
def trained(ring: Dataset, sasrec: Path, backbone_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grounded writer with a collaborative model, on a backbone that is trained through LoRA."""
    out = tmp_path_factory.mktemp("artifacts") / "bigrec"
    recipe = small(backbone_folder("qwen3"), "optimizer.epochs=3", "optimizer.backbone_rate=0.01", "requires=sasrec")
    run(recipe, ring, RunOptions(out=out, id_model=sasrec), QUIET)
    return out


def loaded(folder: Path, precision: Precision = "fp32") -> Any:
    popular_N = Catalog.read(folder / "catalog.parquet").popular()
    return load_generative(folder, popular_N, precision=precision)


def test_the_artifact_answers_as_it_was_evaluated(trained: Path, ring: Dataset) -> None:
    artifact = loaded(trained)
    writer, manifest = artifact.model, artifact.manifest
    assert isinstance(writer, BigRecGenerator) and writer.collaborative is not None
    record = artifact.record
    assert record.collaborative and manifest.training["exponents"]["users"] == 64
    assert Exponents(record.popularity_exponent, record.collaborative_exponent) == writer.exponents
    assert_golden_lists(artifact, ring)
    targets = leave_one_out(ring).validation
    ranks = ranks_in(write_all(writer, list(targets.histories())), targets.rows_T, ring.n_items)
    assert float((ranks <= 10).mean()) == pytest.approx(manifest.metrics["validation_recall@10"])


def test_weights_can_be_chosen_anew(trained: Path, sasrec: Path, ring: Dataset, tmp_path: Path) -> None:
    """With the same collaborative model they are the same; without one they are popularity's alone."""
    before = loaded(trained)
    same = reweigh(trained, ring, tmp_path / "same", collaborative=sasrec, seed=0, console=QUIET)
    assert same.method == before.manifest.method
    assert same.metrics == before.manifest.metrics and same.training["reweighed_from"] == before.manifest.version
    alone = reweigh(trained, ring, tmp_path / "alone", collaborative=None, seed=0, console=QUIET)
    assert not alone.method.record["collaborative"]
    assert alone.recipe_data["requires"] is None
    after = loaded(tmp_path / "alone").model
    assert isinstance(after, BigRecGenerator) and after.collaborative is None
    tuned, kept = before.model.model.state_dict(), after.model.state_dict()
    assert all(torch.equal(tuned[name], kept[name]) for name in tuned), "the language model is untouched"
    with pytest.raises(ArtifactError, match="dense"):
        reweigh(sasrec, ring, tmp_path / "none", collaborative=None, seed=0, console=QUIET)


def test_training_leaves_the_base_model_that_grounds_as_it_was(trained: Path, backbone_folder: Folder) -> None:
    artifact = loaded(trained)
    base = load_text_model(str(backbone_folder("qwen3")))[0].state_dict()
    found = artifact.model.space.body.state_dict()
    assert base.keys() == found.keys() and all(torch.equal(base[name], found[name]) for name in base)
    tuned = artifact.model.model.state_dict()
    assert any(not torch.equal(base[name], tuned[f"model.{name}"]) for name in base)


def test_the_service_opens_it_and_counts_what_it_holds(trained: Path) -> None:
    parts = open_artifact(trained, "cpu")
    assert isinstance(parts, LoadedGenerative) and parts.recipe == "bigrec" and parts.reads == ("ids", "text")
    kinds = {piece.kind for piece in parts.pieces}
    assert kinds == {"catalog", "title_tokens", "weights", "title_space", "collaborative"}
    held = sum(piece.bytes for piece in parts.pieces)
    assert total_bytes([parts.pieces]) < held, "what LoRA did not touch is held once for the tuned and the base model"


@pytest.mark.parametrize(("precision", "products"), ALL[1:])
async def test_the_service_writes_with_fewer_bits(
    precision: Precision, products: str, trained: Path, ring: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both language models take less memory, scores of texts hardly move, and the golden texts pass at the start."""
    use_products(products, monkeypatch)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    exact, found = loaded(trained).model, loaded(trained, precision)
    model = found.model
    assert found.precision == precision and {model.model.dtype, model.space.body.dtype} == {dtype}
    for before, after in ((exact.model.base_model, model.model.base_model), (exact.space.body, model.space.body)):
        assert module_bytes(after) < 0.8 * module_bytes(before)
        blocks = sum(isinstance(each, PrepackedLinear) for each in after.modules())
        assert (blocks > 0) == (precision == "bf16" and products != "plain")
    assert torch.equal(exact.space.vectors_NH, model.space.vectors_NH), "titles stay where they are"
    assert model.collaborative.encoder.dtype == torch.float32
    prompts = [exact.prepare(read_history(case.asked(ring.row_of), exact.read_titles)) for case in found.golden]
    before, after = (
        [[text.score for text in written.generated] for written in writer.write(prompts, [ListQuery()] * len(prompts))]
        for writer in (exact, model)
    )
    np.testing.assert_allclose(after, before, atol=0.02)

    service = Service(
        load_settings(artifacts=(trained,), store="sqlite:///:memory:", precision=precision, precision_forced=True)
    )
    await service.start()
    assert service.loading is not None
    await service.loading
    (recommender,) = service.registry.recommenders.values()
    assert recommender.parts.precision == precision
    await service.close()


def module_bytes(module: torch.nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum({id(each) if each.is_mkldnn else each.data_ptr(): each.nbytes for each in tensors}.values())


@pytest.mark.parametrize(
    "file",
    [
        "title_space.safetensors",
        "adapter/adapter_model.safetensors",
        "parts/collaborative/manifest.json",
        "golden.json",
    ],
)
def test_a_part_that_is_altered_or_gone_is_refused(trained: Path, tmp_path: Path, file: str) -> None:
    for way in ("gone", "flipped"):
        folder = tmp_path / way
        shutil.copytree(trained, folder)
        whole = (folder / file).read_bytes()
        (folder / file).unlink()
        if way == "flipped":
            (folder / file).write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(StartError) as refused:
            open_artifact(folder, "cpu")
        assert "\n" not in str(refused.value)


def test_a_collaborative_model_of_other_items_is_refused(sasrec: Path, backbone_folder: Folder, tmp_path: Path) -> None:
    other = read_dataset(write_dataset(tmp_path / "other", users=40, items=30))
    recipe = small(backbone_folder("qwen3"), "optimizer.epochs=1", "requires=sasrec")
    with pytest.raises(ValueError, match="has other items than other"):
        run(recipe, other, RunOptions(out=tmp_path / "x", id_model=sasrec), QUIET)
    with pytest.raises(RecipeError, match="builds on 'sasrec': give its artifact with --id-model"):
        run(recipe, other, RunOptions(out=tmp_path / "x"), QUIET)
