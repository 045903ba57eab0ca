"""The encoder-decoder form of `tiger`: its loss is the model's own, users are read where they are known, and its
artifact answers as it was evaluated."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from index import Catalog
from index.trie import TokenTrie
from modeling.generation.api import GenerationSettings, ListQuery
from modeling.generation.item_tokenizer import CODE_END, CodeTokenizer
from modeling.methods.base_generative import load_generative
from modeling.methods.trie import EncoderDecoderGenerator, trie_generator
from service.artifacts.loading import LoadedGenerative, open_artifact
from testing.datasets import ring_dataset
from testing.running import running
from training.data.dataset import Dataset
from training.data.splits import leave_one_out
from training.loop.examples import EpochWindows, LengthBatches, Window, prefixes_of
from training.methods.encoder_decoder import EncoderDecoderModule
from training.methods.next_token import ranks_in, user_ids_of, write_all
from training.objectives.trie_softmax import TrieSoftmax
from training.recipes import RecipeError, get_recipe
from training.run import RunOptions, run

QUIET = Console(quiet=True)
CODES_NL = np.array([[0, 1, 0], [0, 1, 1], [2, 0, 0], [3, 1, 0], [1, 1, 0], [1, 0, 0], [3, 3, 0], [2, 0, 1]])
FORM = ["backbone.kind=encoder-decoder", "backbone.width=32", "backbone.depth=2", "backbone.head_width=16"]
SETTINGS = [
    *FORM, "method.codes.size=8", "method.codes.levels=2", "method.codes.dim=8", "method.codes.epochs=20",
    "history.limit=8", "history.dropout=0", "backbone.dropout=0.1", "optimizer.positions=60", "method.beams=10",
    "history.user_buckets=6",
]  # fmt: skip


def network(spelling: CodeTokenizer, dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=spelling.vocabulary, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=dropout,
        pad_token_id=CODE_END, eos_token_id=None,
    )  # fmt: skip
    config.decoder_start_token_id = CODE_END
    made = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "relative" in name or ".q." in name:
                weight.normal_(std=1.0)
    return made.eval()


def writer_over(spelling: CodeTokenizer, model: nn.Module, *, renormalize: bool = False) -> EncoderDecoderGenerator:
    tokens = spelling.spell(CODES_NL)
    trie = TokenTrie.build([tokens[row].tolist() for row in range(len(tokens))], None)
    made = trie_generator(
        model, spelling, tokens, trie, np.arange(len(tokens)), end=None, history_limit=4,
        default=GenerationSettings(8, 3), renormalize=renormalize,
    )  # fmt: skip
    assert isinstance(made, EncoderDecoderGenerator)
    return made


def module_over(spelling: CodeTokenizer, model: nn.Module, **options: Any) -> EncoderDecoderModule:
    users_U = np.array([spelling.user(user) for user in ("anna", "ben")])
    return EncoderDecoderModule(model, spelling.spell(CODES_NL), start=CODE_END, users_U=users_U, **options)


def windows(*histories: tuple[list[int], int]) -> list[Window]:
    return [Window(np.array(rows), user, last_only=True) for rows, user in histories]


def test_the_loss_is_the_models_own_and_padding_has_none() -> None:
    spelling = CodeTokenizer([4, 4, 2], 5)
    model = network(spelling)
    module = module_over(spelling, model).eval()
    together = windows(([0, 3, 2], 0), ([5, 1], 1), ([7, 2, 2, 4, 6], 0))
    with torch.no_grad():
        alone = []
        for window in together:
            batch = module.collate([window])
            assert batch.mask_BR is None and batch.count == 3
            own = float(model(input_ids=batch.ids_BR, labels=batch.targets_BL).loss) * 3
            assert float(module(batch)) == pytest.approx(own, rel=1e-5)
            alone.append(own)
        batch = module.collate(together)
        assert batch.mask_BR is not None and batch.count == 9
        assert float(module(batch)) == pytest.approx(sum(alone), rel=1e-5)


def test_among_children_the_loss_is_minus_the_score_of_the_search() -> None:
    spelling = CodeTokenizer([4, 4, 2], 5)
    model = network(spelling)
    writer = writer_over(spelling, model, renormalize=True)
    module = module_over(
        spelling, model, children=TrieSoftmax(writer.paths, spelling.spell(CODES_NL), None)
    ).eval()  # fmt: skip
    (written,) = writer.write([writer.prepare([5, 1], "ben")], [ListQuery(8)])
    assert sum(np.exp(written.scores_K)) == pytest.approx(1, abs=1e-4)
    for row, score in zip(written.rows_K.tolist(), written.scores_K.tolist(), strict=True):
        with torch.no_grad():
            assert float(module(module.collate(windows(([5, 1, row], 1))))) == pytest.approx(-score, abs=1e-4)


@pytest.mark.gpu
def test_a_batch_follows_the_model_to_a_gpu() -> None:
    spelling = CodeTokenizer([4, 4, 2], 5)
    model = network(spelling)
    module = module_over(spelling, model, user_dropout=0.5)
    batch = module.collate(windows(([0, 3, 2], 0), ([5, 1], 1)))
    before = module.eval()(batch).detach()
    on_gpu = module.to("cuda")
    assert float(on_gpu(batch).detach()) == pytest.approx(float(before), rel=1e-4)
    on_gpu.train()(batch).backward()
    assert all(weight.grad is not None for weight in on_gpu.parameters())


def test_a_prompt_is_what_was_trained_on_and_its_order_matters() -> None:
    spelling = CodeTokenizer([4, 4, 2], 5)
    model = network(spelling)
    writer, module = writer_over(spelling, model), module_over(spelling, model)
    batch = module.collate(windows(([4, 7, 0, 5], 1)))
    assert batch.ids_BR[0].tolist() == list(writer.prepare([4, 7, 0], "ben").tokens)
    assert batch.targets_BL[0].tolist() == writer.names.tokens[5].tolist()
    assert writer.prepare([1, 4, 7, 0, 5], "ben").tokens == writer.prepare([3, 4, 7, 0, 5], "ben").tokens, "the newest"
    (one,), (other,) = (writer.write([writer.prepare(history)], [ListQuery(8)]) for history in ([4, 7, 0], [7, 4, 0]))
    assert np.abs(one.scores_K - other.scores_K).max() > 1e-3


def test_a_history_alone_is_the_history_in_a_batch_and_an_empty_one_is_answered() -> None:
    spelling = CodeTokenizer([4, 4, 2], 5)
    writer = writer_over(spelling, network(spelling))
    prompts = [
        writer.prepare(*given) for given in (([4, 7, 0], "ben"), ([], None), ([2], "anna"), ([6, 1, 0, 3], None))
    ]
    together = writer.write(prompts, [ListQuery(8)] * 4)
    for prompt, written in zip(prompts, together, strict=True):
        (alone,) = writer.write([prompt], [ListQuery(8)])
        assert alone.rows_K.tolist() == written.rows_K.tolist() and sorted(alone.rows_K.tolist()) == list(range(8))
        np.testing.assert_allclose(alone.scores_K, written.scores_K, atol=1e-5)
        assert written.filled == 0 and all(text.valid and text.row is not None for text in written.generated)
        assert [text.code for text in alone.generated] == [tuple(CODES_NL[row].tolist()) for row in alone.rows_K]


def test_users_are_read_where_they_are_known_and_have_tokens() -> None:
    spelling, without = CodeTokenizer([4, 4, 2], 50), CodeTokenizer([4, 4, 2])
    assert spelling.vocabulary == 61 and without.vocabulary == 11
    assert 11 <= spelling.user("anna") < 61 and spelling.user("anna") != spelling.user("ben")
    assert spelling.user("anna") == 24, "the same in every process and version"
    assert spelling.user(None) == without.user("anna") == CODE_END
    writer = writer_over(spelling, network(spelling))
    scores = [
        writer.write([writer.prepare([4, 7], user)], [ListQuery(8)])[0].scores_K for user in ("anna", "ben", None)
    ]
    assert all(np.abs(one - other).max() > 1e-3 for one, other in ((scores[0], scores[1]), (scores[1], scores[2])))


def test_some_histories_are_trained_as_nobodys() -> None:
    spelling = CodeTokenizer([4, 4, 2], 5)
    model = network(spelling)
    module = module_over(spelling, model, user_dropout=0.999999).train()
    module.model.eval()
    known, nobody = module.collate(windows(([4, 7, 0], 0))), module.collate(windows(([4, 7, 0], 0)))
    nobody.ids_BR[:, 0] = CODE_END
    with torch.no_grad():
        assert float(module(known)) == pytest.approx(float(module(nobody)), rel=1e-6)
        assert abs(float(module.eval()(known)) - float(module(nobody))) > 1e-3


def test_every_item_but_the_first_has_a_window_with_all_the_history_that_is_read() -> None:
    sequence = np.arange(10, 17)
    found = [window.rows.tolist() for window in prefixes_of(sequence, 3)]
    assert found == [sequence[max(0, end - 3) : end + 1].tolist() for end in range(1, 7)]
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 8, rng.integers(1, 20)) for _ in range(40)]
    cut = EpochWindows(sequences, limit=5, seed=0, last_only=True)
    assert [window.user for window in cut.windows] == [
        user for user, rows in enumerate(sequences) for _ in range(len(rows) - 1)
    ]
    batches = LengthBatches(cut, positions=32, seed=0)
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        drawn = batches.global_batches()
        assert sorted(number for batch in drawn for number in batch) == list(range(len(cut)))
        assert max(map(len, drawn)) <= 33, "positions are targets"


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("tiger", ["history.user_buckets=10"], "history.user_buckets has no effect"),
        ("tiger", [FORM[0], "history.user_dropout=0.5"], "history.user_dropout has no effect"),
        ("tiger", ["backbone.heads=6"], "does not divide"),
        ("genre", [FORM[0]], "backbone.kind has no effect"),
        ("sasrec", ["backbone.head_width=16"], "backbone.head_width has no effect"),
    ],
)
def test_settings_without_effect_are_refused(recipe: str, settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_recipe(recipe, settings)


def test_the_papers_sizes_are_the_forms_own() -> None:
    spec = get_recipe("tiger", [FORM[0], "backbone.width=128", "backbone.heads=6"]).backbone
    assert (spec.width, spec.depth, spec.heads, spec.head_size, spec.inner_size) == (128, 4, 6, 64, 1024)
    plain = get_recipe("tiger").backbone
    assert (plain.head_size, plain.inner_size) == (64, 1024)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=96)


@pytest.fixture(scope="module")
def trained(ring: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "encoded"
    recipe = get_recipe("tiger", [*SETTINGS, "optimizer.epochs=12", "optimizer.patience=12", "optimizer.rate=3e-3"])
    result = run(recipe, ring, RunOptions(out=out), QUIET)
    assert result.fitted.losses[-1] < 0.75 * result.fitted.losses[0]
    assert result.validation["recall@10"] > 0.5
    return out


def test_the_artifact_writes_what_was_evaluated(trained: Path, ring: Dataset) -> None:
    catalog = Catalog.read(trained / "catalog.parquet")
    artifact = load_generative(trained, catalog.popular(), precision="bf16")
    assert artifact.precision == "fp32", "a network that writes codes is not rounded"
    assert artifact.record.architecture == "T5ForConditionalGeneration" and artifact.record.end is None
    assert artifact.record.user_buckets == 6 and artifact.record.max_new_tokens == 3
    assert artifact.record.renormalize, "it is asked as it was trained"
    for case in artifact.golden:
        history = [ring.row_of[item] for item in case.history]
        (written,) = artifact.model.write([artifact.model.prepare(history)], [ListQuery(10, np.array(history))])
        assert [text.text for text in written.generated] == case.texts
        assert [catalog.item_ids[row] for row in written.rows_K] == case.top
    targets = leave_one_out(ring).validation
    histories = list(targets.histories())
    ranks = ranks_in(write_all(artifact.model, histories, user_ids_of(targets)), targets.rows_T, ring.n_items)
    assert float((ranks <= 10).mean()) == pytest.approx(artifact.manifest.metrics["validation_recall@10"])


async def test_the_service_writes_code_by_code_for_whoever_asks(trained: Path) -> None:
    """Users ask for the same items at the same time, and each is answered as what they are to the model."""
    parts = open_artifact(trained, "cpu")
    assert isinstance(parts, LoadedGenerative) and parts.recipe == "tiger" and parts.reads == ("ids",)
    history, asking = parts.golden[3].history, [None, *(f"user {number}" for number in range(5))]
    async with running(opens=open_artifact, artifacts_root=trained.parent) as anyo:
        assert (await anyo.client.post(f"/artifacts/{trained.name}/load")).status_code == 200
        answers = await asyncio.gather(*(anyo.write(history=history, user_id=user) for user in asking))
    rows = [parts.catalog.row(item) for item in history]
    for user, answer in zip(asking, answers, strict=True):
        body = answer.json()
        assert answer.status_code == 200 and body["tokens"]["prompt"] == 1 + 3 * len(rows)
        (written,) = parts.model.write(
            [parts.model.prepare(cast(list[int], rows), user)], [ListQuery(10, np.array(rows))]
        )
        assert 10 <= written.new_tokens <= 10 * 3, "no pass is made for codes without an alternative"
        assert [text["code"] for text in body["generated"]] == [list(text.code or ()) for text in written.generated]
        np.testing.assert_allclose([item["score"] for item in body["items"]], written.scores_K, atol=1e-5)
    assert len({answer.json()["items"][0]["score"] for answer in answers}) > 3, "users that are read alike prove little"
