"""The recipe that writes: its loss is the model's own, it learns, and its artifact answers as it was evaluated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from index import Catalog
from index.trie import TokenTrie
from modeling.artifact.manifest import ArtifactError
from modeling.generation.api import GenerationSettings, ListQuery
from modeling.generation.item_tokenizer import TitleTokenizer
from modeling.methods.base_generative import load_generative
from modeling.methods.trie import TrieGenerator, trie_generator
from service.artifacts.loading import LoadedGenerative, open_artifact
from service.errors import StartError
from testing.artifacts import assert_golden_lists
from testing.datasets import ring_dataset
from testing.models import TITLES, backbone_folder
from training.data.dataset import Dataset
from training.data.splits import leave_one_out
from training.item_ids.assign import load_writer
from training.loop.examples import Window
from training.methods.next_token import NextTokenModule, TrieSoftmaxModule, ranks_in, write_all
from training.objectives.trie_softmax import TrieSoftmax
from training.recipes import Recipe, RecipeError, get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

QUIET = Console(quiet=True)
END, LIMIT = 2, 5
SETTINGS = ["history.title_tokens=6", "history.limit=12", "method.validation_users=64", "optimizer.positions=60"]
Folder = Callable[[str], Path]


def small(folder: Path, *settings: str) -> Recipe:
    return get_recipe("genre", [*SETTINGS, *settings], backbone=str(folder))


def random_writer(
    folder: Path, titles: list[str], *, beams: int, popular: list[int] | None = None, renormalize: bool = False
) -> tuple[TrieGenerator, Any]:
    """An untrained writer of `titles`."""
    model, tokenizer, _ = load_writer(small(folder), None)
    spelling = TitleTokenizer(tokenizer, LIMIT)
    tokens = spelling.spell(titles, END)
    trie = TokenTrie.build([tokens[row].tolist() for row in range(len(titles))], END)
    writer = trie_generator(
        model.eval().requires_grad_(False), spelling, tokens, trie, np.array(popular or range(len(titles))),
        end=END, history_limit=12, default=GenerationSettings(beams, LIMIT + 1), renormalize=renormalize,
    )  # fmt: skip
    return writer, model


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_the_loss_is_the_models_own_and_padding_has_none(backbone_folder: Folder, architecture: str) -> None:
    model, tokenizer, _ = load_writer(small(backbone_folder(architecture)), None)
    module = NextTokenModule(model, TitleTokenizer(tokenizer, LIMIT).spell(TITLES, END), end=END, dropout=0.0).eval()
    windows = [Window(np.array(rows)) for rows in ([0, 3, 2], [5, 1], [8, 2, 2, 10])]
    together = module.collate(windows)
    with torch.no_grad():
        alone = [module.collate([window]) for window in windows]
        assert float(module(together)) == pytest.approx(sum(float(module(one)) for one in alone), rel=1e-5)
        for one in alone:
            ids_BT = torch.cat([one.ids_BT, one.targets_BT[:, -1:]], 1)
            own = cast(Any, model)(input_ids=ids_BT, labels=ids_BT).loss  # shifts them itself
            assert float(module(one)) == pytest.approx(float(own) * one.count, rel=1e-5)
            assert ids_BT[0, 0] == ids_BT[0, -1] == END
    assert together.count == sum(one.count for one in alone)


def test_a_prompt_is_the_beginning_of_what_was_trained_on(backbone_folder: Folder) -> None:
    writer, model = random_writer(backbone_folder("qwen3"), TITLES, beams=2)
    module = NextTokenModule(model, writer.names.tokens, end=END, dropout=0.0)
    trained = module.collate([Window(np.array([4, 7, 0, 5]))]).ids_BT[0].tolist()
    prompt = [END, *writer.prepare([4, 7, 0]).tokens]
    assert trained == [*prompt, *writer.names.tokens[5].tolist()]
    assert writer.prepare([4, *writer.read_titles([TITLES[7]]), 0]).tokens == tuple(prompt[1:])


def test_as_many_beams_as_titles_rank_by_the_probability_of_each(backbone_folder: Folder) -> None:
    """The whole catalog is written, in the order of brute force: log probability of every title after the history."""
    writer, model = random_writer(backbone_folder("qwen3"), TITLES, beams=len(TITLES))
    history = [4, 7, 0]
    (written,) = writer.write([writer.prepare(history)], [ListQuery(len(TITLES))])
    prompt = [END, *writer.prepare(history).tokens]
    scores = []
    for row in range(len(TITLES)):
        title = [*writer.names.tokens[row].tolist(), END]
        with torch.no_grad():
            logits_TV = cast(Any, model)(torch.tensor([prompt + title])).logits[0].float().log_softmax(-1)
        scores.append(float(sum(logits_TV[len(prompt) - 1 + at, token] for at, token in enumerate(title))))
    assert written.rows_K.tolist() == np.argsort([-score for score in scores]).tolist()
    np.testing.assert_allclose(written.scores_K, sorted(scores, reverse=True), atol=1e-4)
    assert written.filled == 0 and all(text.valid for text in written.generated)


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_among_children_the_loss_is_minus_the_score_of_the_search(backbone_folder: Folder, architecture: str) -> None:
    """One probability of an item, trained and searched: over the catalog it sums to one."""
    titles = [*TITLES, TITLES[2], f"{TITLES[0]} Two"]  # one name twice, one the beginning of another
    writer, model = random_writer(backbone_folder(architecture), titles, beams=len(titles), renormalize=True)
    names = writer.names.tokens
    module = TrieSoftmaxModule(
        model, names, end=END, dropout=0.0, children=TrieSoftmax(writer.paths, names, END)
    ).eval()  # fmt: skip

    def loss(*rows: int) -> float:
        with torch.no_grad():
            return float(module(module.collate([Window(np.array(rows))])))

    history = [4, 7, 0]
    (written,) = writer.write([writer.prepare(history)], [ListQuery(len(titles))])
    for row, score in zip(written.rows_K.tolist(), written.scores_K.tolist(), strict=True):
        assert loss(*history, row) - loss(*history) == pytest.approx(-score, abs=1e-4)
    assert sum(np.exp(text.score) for text in written.generated) == pytest.approx(1, abs=1e-4)
    windows = [Window(np.array(rows)) for rows in (history, [5, 1, 1, len(titles) - 1])]
    together = module.collate(windows)
    assert together.count == 7 < int((together.targets_BT >= 0).sum()) < int((together.ids_BT != END).sum())
    with torch.no_grad():
        assert float(module(together)) == pytest.approx(sum(loss(*window.rows) for window in windows), rel=1e-5)


def test_items_of_one_name_are_told_apart_by_popularity(backbone_folder: Folder) -> None:
    titles = [*TITLES[:4], TITLES[1], TITLES[1]]
    writer, _ = random_writer(backbone_folder("qwen3"), titles, beams=4, popular=[5, 3, 1, 0, 2, 4])
    (written,) = writer.write([writer.prepare([0])], [ListQuery(6)])
    place = {row: at for at, row in enumerate(written.rows_K.tolist())}
    assert place[5] + 1 == place[1] == place[4] - 1


def test_what_the_beams_do_not_reach_is_filled_up_and_nothing_excluded_comes_back(backbone_folder: Folder) -> None:
    writer, _ = random_writer(backbone_folder("qwen3"), TITLES, beams=2)
    (free,) = writer.write([writer.prepare([3])], [ListQuery(8)])
    assert free.filled == 6 and len(set(free.rows_K.tolist())) == 8
    assert (np.diff(free.scores_K) < 0).all()
    never = np.array([3, int(free.rows_K[0])])
    (written,) = writer.write([writer.prepare([3])], [ListQuery(20, never, np.arange(8))])
    assert sorted(written.rows_K.tolist()) == sorted(set(range(8)) - set(never.tolist()))


def test_ranks_beyond_the_list_are_the_last_of_the_catalog() -> None:
    rows_TK = np.array([[4, 2, -1], [1, 0, 3]])
    assert ranks_in(rows_TK, np.array([2, 2]), 50).tolist() == [2, 50]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["history.limit=100"], "takes up to 708 positions, and backbone .* reads 256"),
        (["history.form=compressed"], "method 'trie' writes titles or codes"),
        (["adapter.kind=none"], "adapter.kind is 'none'"),
    ],
)
def test_what_cannot_be_written_is_said(backbone_folder: Folder, settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_writer(small(backbone_folder("qwen3"), *settings), None)


def test_a_backbone_without_a_causal_head_is_refused(backbone_folder: Folder) -> None:
    with pytest.raises(RecipeError, match="'genre' writes with a causal language model: backbone 'minilm'"):
        get_recipe("genre", backbone="minilm")
    with pytest.raises(RecipeError, match=r"lm_head.*BertForMaskedLM.* no causal language model"):
        load_writer(small(backbone_folder("bert")), None)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=96)


@pytest.fixture(scope="module")
def trained(ring: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A writer on `tiny` that has learned where users of the ring go next."""
    out = tmp_path_factory.mktemp("artifacts") / "writer"
    settings = ["optimizer.epochs=25", "optimizer.patience=25", "optimizer.backbone_rate=3e-3"]
    recipe = get_recipe("genre", [*SETTINGS, *settings])
    result = run(recipe, ring, RunOptions(out=out), QUIET)
    assert result.validation["recall@10"] > 0.5
    return out


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt2"])
def test_a_larger_backbone_is_trained_through_lora_and_stored_beside_it(
    backbone_folder: Folder, ring: Dataset, tmp_path: Path, architecture: str
) -> None:
    source = backbone_folder(architecture)
    recipe = small(source, "optimizer.epochs=2", "optimizer.backbone_rate=0.01", "method.beams=5")
    assert recipe.adapter.kind == "lora"
    run(recipe, ring, RunOptions(out=tmp_path / "lora"), QUIET)
    parts = open_artifact(tmp_path / "lora", "cpu")
    assert isinstance(parts, LoadedGenerative)
    assert_golden_lists(parts, ring)
    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "lora" / "backbone"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    matrices = load_file(tmp_path / "lora" / "adapter" / "adapter_model.safetensors")
    assert matrices and all("lora_" in name for name in matrices)


def test_the_artifact_writes_what_was_evaluated(trained: Path, ring: Dataset) -> None:
    catalog = Catalog.read(trained / "catalog.parquet")
    artifact = load_generative(trained, catalog.popular())
    assert sum(bool(case.titles) for case in artifact.golden) == 4, "free titles alone, together and among ids"
    assert_golden_lists(artifact, ring)
    targets = leave_one_out(ring).validation
    ranks = ranks_in(write_all(artifact.model, list(targets.histories())), targets.rows_T, ring.n_items)
    assert float((ranks <= 10).mean()) == pytest.approx(artifact.manifest.metrics["validation_recall@10"])


def test_the_service_opens_it(trained: Path) -> None:
    parts = open_artifact(trained, "cpu")
    assert isinstance(parts, LoadedGenerative) and parts.recipe == "genre" and parts.reads == ("ids", "text")
    assert {piece.kind for piece in parts.pieces} == {"catalog", "title_tokens", "weights"}


def test_every_file_of_it_that_is_altered_or_gone_is_refused(trained: Path, tmp_path: Path) -> None:
    files = [path.relative_to(trained) for path in sorted(trained.rglob("*")) if path.is_file()]
    assert {"backbone/model.safetensors", "golden.json", "item_tokens.safetensors"} <= {str(file) for file in files}
    for number, file in enumerate(files):
        for way in ("gone", "cut", "flipped"):
            folder = tmp_path / f"{number}-{way}"
            shutil.copytree(trained, folder)
            whole = (folder / file).read_bytes()
            if way == "gone":
                (folder / file).unlink()
            else:
                (folder / file).write_bytes(whole[:-7] if way == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
            with pytest.raises(StartError) as refused:
                open_artifact(folder, "cpu")
            assert "\n" not in str(refused.value)
            shutil.rmtree(folder)


def test_an_artifact_of_the_other_kind_is_named(trained: Path) -> None:
    from modeling.methods.dense import load_artifact

    with pytest.raises(ArtifactError, match=r"writer is generative \(genre\), and a dense one is needed here"):
        load_artifact(trained)
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["method"]["kind"] == "trie" and manifest["method"]["record"]["beams"] == 20


def test_a_withdrawn_title_is_not_written_and_a_new_one_is(backbone_folder: Folder) -> None:
    """The answer is that of a writer over the titles that there are now."""
    writer, _ = random_writer(backbone_folder("qwen3"), TITLES, beams=len(TITLES) + 2)
    added = len(TITLES) + 7
    new = f"{TITLES[1]} {TITLES[0]}"
    reference, _ = random_writer(backbone_folder("qwen3"), [*TITLES, new], beams=len(TITLES) + 2)
    query = ListQuery(len(TITLES) + 1, exclude=np.array([2]))
    before = writer.write([writer.prepare([4, 7, 0])], [query])[0]
    assert writer.item_refusal(new) is None
    writer.change_items(frozenset({2}), {added: new})
    (written,) = writer.write([writer.prepare([4, 7, 0])], [query])
    (expected,) = reference.write([reference.prepare([4, 7, 0])], [query])
    assert [len(TITLES) if row == added else row for row in written.rows_K.tolist()] == expected.rows_K.tolist()
    np.testing.assert_allclose(written.scores_K, expected.scores_K, atol=1e-4)
    assert 2 not in {text.row for text in written.generated} and written.filled == 0
    writer.change_items(frozenset(), {})
    (again,) = writer.write([writer.prepare([4, 7, 0])], [query])
    assert again.rows_K.tolist() == before.rows_K.tolist()


def test_a_title_that_cannot_be_written_to_its_end_is_refused(backbone_folder: Folder) -> None:
    writer, _ = random_writer(backbone_folder("qwen3"), TITLES, beams=2)
    assert "no tokens" in (writer.item_refusal(" ") or "")
    writer.names_are_assigned = True  # as semantic IDs are
    assert not writer.adds_items and "assigned in training" in (writer.item_refusal(TITLES[0]) or "")
