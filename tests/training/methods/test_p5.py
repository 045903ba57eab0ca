"""P5: identifiers without a leak, prompts of five families, whole words in training and serving, an artifact."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from index import Catalog
from index.trie import TokenTrie
from modeling.artifact.manifest import ArtifactError
from modeling.generation.api import GenerationSettings, ListQuery
from modeling.generation.base import ItemIdentifiers
from modeling.generation.item_tokenizer import CODE_END, CodeTokenizer
from modeling.methods.base_generative import load_generative, trie_of
from modeling.methods.p5 import P5Generator, p5_generator
from modeling.methods.p5_files import Tasks
from modeling.methods.p5_prompts import HELD_OUT, MARKS, NO, SERVED, TRAINED, YES, TaskText, usable
from service.artifacts.loading import LoadedGenerative, open_artifact
from testing.datasets import write_dataset
from training.data.dataset import Dataset, read_dataset
from training.data.splits import Split, leave_one_out
from training.item_ids.identifiers import first_seen, identifiers, numbered
from training.loop.examples import EpochWindows, Window
from training.methods.next_token import ranks_in, write_all
from training.methods.p5 import P5Module, P5Settings, name_tasks
from training.methods.p5_evaluation import expected_ratings
from training.methods.p5_examples import TaskExamples, families_of
from training.recipe import CodesSpec
from training.recipes import Recipe, RecipeError, get_recipe
from training.run import RunOptions, run

QUIET = Console(quiet=True)
KINDS = ("random", "sequential", "collaborative", "categories")
SPEC = CodesSpec(kind="collaborative", size=8, clusters=4)
SMALL = [
    *("method.codes.size=10", "backbone.width=32", "backbone.depth=2", "backbone.dropout=0.0"),
    *("history.dropout=0.0", "history.limit=12", "optimizer.positions=200", "method.tasks.candidates=4"),
]
CLUSTERS = "method.codes.clusters=4"


def write_reviews(folder: Path, *, users: int = 96) -> Path:
    """The ring of `write_dataset`, with ratings that follow from the item and reviews that follow from the rating."""
    write_dataset(folder, users=users)
    events = pl.read_csv(folder / "interactions.csv")
    number = events["item_id"].str.slice(1).cast(pl.Int64)
    rating = 1 + number % 5
    words = rating.replace_strict({1: "very bad", 2: "rather bad", 3: "so so", 4: "rather good", 5: "very good"})
    events = events.with_columns(rating.alias("rating"), ("item was " + words).alias("review"), words.alias("summary"))
    events.write_csv(folder / "interactions.csv")
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    for place, item in enumerate(items):
        item["categories"] = ["even" if place % 2 else "odd", *(["third"] if place % 3 == 0 else [])]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_reviews(tmp_path_factory.mktemp("reviews")))


def other_targets(dataset: Dataset) -> Dataset:
    """The same training part; validation and test items, ratings and words are others."""
    rows, last = dataset.rows.copy(), dataset.offsets_U1[1:] - 1
    held = np.concatenate([last, last - 1])
    rows[held] = (rows[held] + 17) % dataset.n_items
    marked = np.isin(np.arange(len(rows)), held)
    columns = dataset.columns.with_columns(
        pl.Series("rating", np.where(marked, 1.0, dataset.columns["rating"].to_numpy())),
        pl.when(pl.Series(marked)).then(pl.lit("told by the test")).otherwise(pl.col("review")).alias("review"),
        pl.when(pl.Series(marked)).then(pl.lit("told")).otherwise(pl.col("summary")).alias("summary"),
    )
    return replace(dataset, rows=rows, columns=columns)


# -- identifiers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_item_has_an_identifier_of_its_own_along_the_trie(kind: str, ring: Dataset) -> None:
    codes_NL, _ = identifiers(kind, leave_one_out(ring).train_rows(), ring.categories, SPEC, seed=0)
    spelling = CodeTokenizer((codes_NL.max(0) + 1).tolist())
    names = spelling.spell(codes_NL)
    trie = TokenTrie.build([names[row].tolist() for row in range(ring.n_items)], CODE_END)
    assert sorted(row for _, rows in trie.sequences() for row in rows) == list(range(ring.n_items))
    assert all(len(rows) == 1 for _, rows in trie.sequences())
    for tokens, (row,) in trie.sequences():
        assert spelling.code(tokens) == tuple(code for code in codes_NL[row].tolist() if code >= 0)
    ends = {tokens for tokens, _ in trie.sequences()}
    assert not any(tokens[:cut] in ends for tokens in ends for cut in range(1, len(tokens))), "none begins another"


@pytest.mark.parametrize("kind", KINDS)
def test_identifiers_do_not_depend_on_validation_and_test(kind: str, ring: Dataset) -> None:
    made = [
        identifiers(kind, leave_one_out(data).train_rows(), data.categories, SPEC, seed=0)[0]
        for data in (ring, other_targets(ring))
    ]
    assert (made[0] == made[1]).all()


def test_the_number_of_the_test_item_cannot_be_guessed_from_the_history(tmp_path: Path) -> None:
    """P5 numbered whole sequences: where items are new to everyone, the next number is the test item."""
    lines = ["user_id,item_id,timestamp", *(f"u{n // 6},i{n},{n % 6}" for n in range(600))]
    (tmp_path / "interactions.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "items.jsonl").write_text("".join(f'{{"item_id":"i{n}","title":"item {n}"}}\n' for n in range(600)))
    data = read_dataset(tmp_path)
    split = leave_one_out(data)

    def hits(rank_N: np.ndarray) -> float:
        guessed = [rank_N[history].max() + 1 for history in split.test.histories()]
        return float(np.mean(rank_N[split.test.rows_T] == guessed))

    whole = [data.sequence(user).astype(np.int64) for user in range(data.n_users)]
    assert hits(first_seen(whole, data.n_items)) == 1.0
    assert hits(first_seen(split.train_rows(), data.n_items)) < 0.05


def test_items_chosen_together_begin_alike() -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.choice(60, 8, replace=False) + 60 * (user % 4) for user in range(400)]
    codes_NL, _ = identifiers("collaborative", sequences, [[]] * 240, CodesSpec(size=60, clusters=4), seed=0)
    assert all(len(np.unique(codes_NL[60 * group : 60 * (group + 1), 0])) == 1 for group in range(4))
    assert len(np.unique(codes_NL[:, 0])) == 4


def test_numbers_are_written_in_pieces() -> None:
    assert numbered(np.arange(100), 10)[42].tolist() == [4, 2]
    assert numbered(np.arange(101), 10)[100].tolist() == [1, 0, 0]


# -- prompts ----------------------------------------------------------------------------------------------------------


def examples_of(dataset: Dataset, tmp_path: Path, *settings: str) -> tuple[TaskExamples, P5Module, Recipe, Split]:
    clusters = [] if "method.codes.kind=random" in settings else [CLUSTERS]
    recipe, split = get_recipe("p5", [*SMALL, *clusters, *settings]), leave_one_out(dataset)
    settings_of = cast(P5Settings, recipe.method)
    named, tasks = name_tasks(recipe, settings_of, split, work=tmp_path / "work", seed=0, console=QUIET)
    examples = TaskExamples(tasks.language, named.tokens, tasks.families, settings_of.tasks, split)
    module = P5Module(
        named.model, named.tokens, end=CODE_END, dropout=0.0, hidden_dropout=0.0, examples=examples,
        whole_words=tasks.whole_words,
    )  # fmt: skip
    return examples, module, recipe, split


def windows_of(split: Split, epoch: int = 0) -> list[Window]:
    windows = EpochWindows([split.train_row(user) for user in range(split.dataset.n_users)], limit=12, seed=0)
    windows.set_epoch(epoch)
    return windows.windows


def test_no_text_shows_what_validation_and_test_hold(ring: Dataset, tmp_path: Path) -> None:
    """Other targets, ratings and words there: the same texts to the last token, of every family and over epochs."""
    drawn = []
    for number, data in enumerate((ring, other_targets(ring))):
        examples, _, _, split = examples_of(
            data, tmp_path / str(number), "method.tasks.review=1", "method.tasks.explanation=1"
        )
        drawn.append(
            [text for epoch in range(2) for window in windows_of(split, epoch) for text in examples.of(window)]
        )
        assert "told" not in " ".join(examples.language.text(text.tokens) for text in drawn[-1])
    assert drawn[0] == drawn[1] and len(drawn[0]) > 1000


def test_a_window_is_drawn_alike_for_one_epoch_and_anew_for_the_next(ring: Dataset, tmp_path: Path) -> None:
    examples, _, _, split = examples_of(ring, tmp_path)
    once, again, later = ([examples.of(window) for window in windows_of(split, epoch)[:20]] for epoch in (3, 3, 4))
    assert once == again != later


def test_families_are_mixed_in_their_shares_and_the_held_out_wordings_are_not_among_them(
    ring: Dataset, tmp_path: Path
) -> None:
    examples, _, _, split = examples_of(
        ring, tmp_path, "method.tasks.rating=0.5", "method.tasks.direct=0.25", "method.tasks.review=0"
    )
    language = examples.language
    said = [
        language.text(text.tokens)
        for epoch in range(4)
        for window in windows_of(split, epoch)
        for text in examples.of(window)
    ]
    items = 4 * sum(len(window.rows) - 1 for window in windows_of(split))
    shares = {"rating": 0, "explanation": 0, "review": 0}
    for text in said:
        shares["rating"] += bool(re.match(r"rating gave|and : which|did rate|does like", text))
        shares["explanation"] += bool(re.match(r"why did|explain", text))
        shares["review"] += "summary" in text or "rating of" in text
    assert shares["rating"] / items == pytest.approx(0.5, abs=0.06)
    assert shares["explanation"] / items == pytest.approx(0.1, abs=0.03) and shares["review"] == 0
    unseen = [re.sub(r"\{\w+\}", "", template.prompt).split() for template in HELD_OUT.values()]
    assert not any(" ".join(words) in text for words in unseen for text in said)


def test_prompts_say_what_the_user_said_of_this_item_and_candidates_hold_the_chosen_one(
    ring: Dataset, tmp_path: Path
) -> None:
    """Windows of three items, so that most of them begin within a sequence."""
    examples, _, _, split = examples_of(
        ring, tmp_path, "method.tasks.rating=1", "method.tasks.direct=1", "method.tasks.review=0"
    )
    language = examples.language
    item_of = {tuple(examples.names[row].tolist()): row for row in range(ring.n_items)}
    user_of = {examples.user(user): user for user in range(ring.n_users)}
    rated = chosen = 0
    cuts = EpochWindows([split.train_row(user) for user in range(ring.n_users)], limit=3, seed=0).windows
    for window in (each for each in cuts if each.start):
        for text in examples.of(window)[1:]:
            start, stop = text.answers[-1]
            prompt, answer = text.tokens[:start], text.tokens[start : stop - 1]
            user = next(user for tokens, user in user_of.items() if _holds(prompt, tokens))
            assert user == window.user
            if answer[0] in language.rating_tokens:
                rated += 1
                row = next(row for name, row in item_of.items() if _holds(prompt, name))
                said = language.ratings[language.rating_tokens.index(answer[0])]
                assert row in window.rows and said == 1 + int(ring.item_ids[row][1:]) % 5
            elif answer in item_of:
                chosen += 1
                assert item_of[answer] in window.rows and _holds(prompt, answer)
    assert rated > 50 and chosen > 50


def _holds(tokens: tuple[int, ...], part: tuple[int, ...]) -> bool:
    return any(tokens[at : at + len(part)] == part for at in range(len(tokens)))


def test_held_out_wordings_say_nothing_that_is_not_trained() -> None:
    for family, template in HELD_OUT.items():
        trained = {
            word
            for other in TRAINED
            if other.family in (family, "sequential")
            for word in re.sub(r"\{\w+\}", "", other.prompt).split()
        }
        assert set(re.sub(r"\{\w+\}", "", template.prompt).split()) <= trained, family
        assert template not in TRAINED


def test_words_of_prompts_are_single_tokens(ring: Dataset, tmp_path: Path) -> None:
    language = examples_of(ring, tmp_path)[0].language
    for word in (YES, NO, *MARKS, "history", "rating", "which"):
        assert len(language.words(word)) == 1, word
    tokens = [*language.user(ring.n_users - 1), *language.rating(5.0), *language.words("very good")]
    assert max(tokens) < language.vocabulary and language.text(tokens) == "very good"


def test_families_that_the_data_has_not_are_refused(ring: Dataset, tmp_path: Path) -> None:
    plain = read_dataset(write_dataset(tmp_path / "plain"))
    spec = cast(P5Settings, get_recipe("p5").method).tasks
    assert spec is not None
    assert families_of(spec, plain) == ("sequential", "direct")
    assert families_of(spec, ring) == ("sequential", "rating", "direct", "explanation", "review")
    for family in ("rating", "explanation", "review"):
        asked = get_recipe("p5", [f'method.tasks.families=["sequential","{family}"]'])
        with pytest.raises(
            RecipeError, match=rf"task family '{family}' needs .*plain has neither .*sequential, direct"
        ):
            name_tasks(
                asked,
                cast(P5Settings, asked.method),
                leave_one_out(plain),
                work=tmp_path / "work",
                seed=0,
                console=QUIET,
            )
        shared = cast(P5Settings, get_recipe("p5", [f"method.tasks.{family}=0.5"]).method).tasks
        with pytest.raises(RecipeError, match=rf"task family '{family}' needs"):
            families_of(shared, plain)
        assert family in families_of(shared, ring)
        none = cast(P5Settings, get_recipe("p5", [f"method.tasks.{family}=0"]).method).tasks
        assert families_of(none, plain) == ("sequential", "direct")


# -- the model --------------------------------------------------------------------------------------------------------


def trie_generator(
    examples: TaskExamples, module: P5Module, recipe: Recipe, split: Split, beams: int, *, fresh: bool = True
) -> P5Generator:
    """The writer of a module; where it is fresh, its whole words are made to weigh."""
    torch.manual_seed(0)
    if fresh and module.whole_words is not None:
        torch.nn.init.normal_(module.whole_words.table.weight, std=0.5)
    tasks = Tasks(examples.language, ("sequential",), module.whole_words)
    spelling = CodeTokenizer(examples.language.item_sizes)
    names = ItemIdentifiers(examples.names, np.arange(len(examples.names)), spelling)
    return p5_generator(
        module.model.eval(), names, trie_of(examples.names, CODE_END), tasks, end=CODE_END,
        history_limit=recipe.history.limit,
        default=GenerationSettings(beams, int(np.diff(examples.names.offsets).max()) + 1),
    )  # fmt: skip


@pytest.mark.parametrize("whole_words", [True, False])
def test_what_is_served_is_what_was_trained_whole_words_included(
    ring: Dataset, tmp_path: Path, whole_words: bool
) -> None:
    """All items, written with as many beams: the order and the scores of the training module's own forward."""
    examples, module, recipe, split = examples_of(ring, tmp_path, f"method.tasks.whole_words={json.dumps(whole_words)}")
    writer = trie_generator(examples, module.eval(), recipe, split, ring.n_items)
    history = [4, 7, 0, 21, 3]
    prompt = writer.prepare(history)
    (written,) = writer.write([prompt], [ListQuery(ring.n_items)])

    def scores() -> np.ndarray:
        language, found = examples.language, []
        names = [examples.names[row] for row in history]
        for row in range(ring.n_items):
            name = examples.names[row].tolist()
            text = language.text_of(SERVED, {}, name, language.history(names))
            assert text.tokens == (*prompt.tokens, *name, CODE_END)
            alone = TaskText(text.tokens, text.answers[-1:])
            found.append(-float(module(module.batch([alone]))) * (len(name) + 1))
        return np.array(found)

    with torch.no_grad():
        trained_N = scores()
        assert written.rows_K.tolist() == np.argsort(-trained_N, kind="stable").tolist()
        np.testing.assert_allclose(written.scores_K, np.sort(trained_N)[::-1], atol=1e-4)
        assert (module.whole_words is not None) == whole_words
        if module.whole_words is not None:
            module.whole_words.table.weight.zero_()
            assert np.abs(scores() - trained_N).max() > 0.1, "the whole words do not weigh: the test proves nothing"
    alone, together = (
        writer.write(prompts, [ListQuery(9)] * len(prompts))[0] for prompts in ([prompt], [prompt, writer.prepare([1])])
    )
    assert alone.rows_K.tolist() == together.rows_K.tolist()


def test_tokens_of_an_identifier_are_one_word(ring: Dataset, tmp_path: Path) -> None:
    examples, module, _, _ = examples_of(ring, tmp_path, "method.codes.kind=random", "method.codes.size=4")
    words, language = module.whole_words, examples.language
    assert words is not None and len(examples.names[0]) == 3
    history = language.history([examples.names[3], examples.names[5]])
    text = torch.tensor(
        [[CODE_END, *(token for part in history for token in part), *language.user(0), *language.rating(3.0)]]
    )
    assert words.numbers(text)[0].tolist() == [1, 2, 2, 2, 3, 4, 4, 4, 5, 6, *[6] * (len(language.user(0)) - 1), 7]
    cut = words.numbers(text[:, :3])
    assert words.later(words.count(text[:, :3]), text[:, 3:7]).tolist() == [4] and cut[0].tolist() == [1, 2, 2]
    spelt_out = language.words("unheardof")
    assert len(spelt_out) > 1 and words.numbers(torch.tensor([spelt_out]))[0].tolist() == [1] * len(spelt_out)


def test_the_loss_is_the_mean_of_an_answer_and_prompts_weigh_alike(ring: Dataset, tmp_path: Path) -> None:
    examples, module, recipe, split = examples_of(ring, tmp_path)
    writer = trie_generator(examples, module.eval(), recipe, split, 5)
    language = examples.language
    short = language.text_of(
        usable("direct", {"user", "item", "chosen"})[0], examples.fields(1, 3), language.piece(YES)
    )
    long = language.text_of(
        usable("explanation", {"user", "item", "explanation"})[0],
        examples.fields(2, 9),
        examples.text("item was very good indeed"),
    )
    with torch.no_grad():
        batch = module.batch([short, long])
        assert batch.count == 2
        assert float(module(batch)) == pytest.approx(float(writer.answer_losses([short, long]).sum()), rel=1e-4)
        sequence = language.text_of(
            SERVED, {}, examples.names[8].tolist(), language.history([examples.names[1], examples.names[2]])
        )
        each = [TaskText(sequence.tokens, (answer,)) for answer in sequence.answers]
        whole = float(module(module.batch([sequence])))
        assert whole == pytest.approx(sum(float(module(module.batch([one]))) for one in each), rel=1e-4)
    spans = [sequence.tokens[start:stop] for start, stop in sequence.answers]
    assert spans == [tuple(examples.names[1]), tuple(examples.names[2]), (*examples.names[8], CODE_END)]


def test_ratings_and_reviews_can_be_learned_by_heart(ring: Dataset, tmp_path: Path) -> None:
    examples, module, recipe, split = examples_of(ring, tmp_path, "backbone.width=64")
    language, texts, pairs, true = examples.language, [], [], []
    rate, explain = (
        usable("rating", {"user", "item", "rating"})[0],
        usable("explanation", {"user", "item", "explanation"})[0],
    )
    summarise = usable("review", {"review", "summary"})[0]
    for user in range(24):
        row, known = int(ring.sequence(user)[0]), examples.known(int(ring.offsets_U1[user]))
        made = [examples.of_interaction(template, user, row, known) for template in (rate, explain, summarise)]
        texts += [text for text in made if text is not None]
        pairs.append((user, row))
        true.append(known["rating"])
    assert len(texts) == 72 and len(set(true)) > 2
    optimizer = torch.optim.AdamW(module.parameters(), lr=4e-3)
    batch = module.batch(texts)
    for _ in range(90):
        optimizer.zero_grad()
        (module(batch) / batch.count).backward()
        optimizer.step()
    writer = trie_generator(examples, module.eval(), recipe, split, 5, fresh=False)
    np.testing.assert_allclose(expected_ratings(writer, examples, rate, pairs), true, atol=0.2)
    assert writer.answer_losses(texts).max() < 0.3
    wrong = [
        language.text_of(rate, examples.fields(*pair), language.rating(6.0 - value))
        for pair, value in zip(pairs, true, strict=True)
        if value != 3
    ]
    assert writer.answer_losses(wrong).min() > 1


# -- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(ring: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "p5"
    settings = [
        *("optimizer.epochs=20", "optimizer.patience=20", "optimizer.rate=4e-3"),
        *("optimizer.positions=80", "optimizer.average_epochs=2", "backbone.width=64", "method.validation_users=24"),
    ]
    result = run(get_recipe("p5", [*SMALL, CLUSTERS, *settings, "method.beams=10"]), ring, RunOptions(out=out), QUIET)
    assert result.validation["recall@10"] > 0.5
    return out


def test_another_wording_is_answered_too_and_every_family_has_its_figures(trained: Path) -> None:
    training = json.loads((trained / "manifest.json").read_text())["training"]
    figures = training["tasks"]
    assert training["families"] == ["sequential", "rating", "direct", "explanation", "review"]
    assert figures["sequential_held_out_recall@10"] > 0.4
    families = {
        "rating_rmse",
        "rating_mae",
        "rating_rmse_of_mean",
        "rating_held_out_rmse",
        "explanation_loss",
        "review_loss",
    }
    assert families <= set(figures) and any(name.startswith("direct_recall@10_of_") for name in figures)


def test_the_artifact_writes_what_was_evaluated_and_the_service_opens_it(trained: Path, ring: Dataset) -> None:
    catalog = Catalog.read(trained / "catalog.parquet")
    artifact = load_generative(trained, catalog.popular())
    assert isinstance(artifact.model, P5Generator) and artifact.model.whole_words is not None
    for case in artifact.golden:
        history = [ring.row_of[item] for item in case.history]
        (written,) = artifact.model.write([artifact.model.prepare(history)], [ListQuery(10, np.array(history))])
        assert [text.text for text in written.generated] == case.texts
        assert all(text.valid and text.code for text in written.generated)
    targets = leave_one_out(ring).validation
    ranks = ranks_in(write_all(artifact.model, list(targets.histories())), targets.rows_T, ring.n_items)
    assert float((ranks <= 10).mean()) == pytest.approx(artifact.manifest.metrics["validation_recall@10"])
    parts = open_artifact(trained, "cpu")
    assert isinstance(parts, LoadedGenerative) and parts.recipe == "p5" and parts.reads == ("ids",)
    assert "whole_words" in {piece.kind for piece in parts.pieces}


@pytest.mark.parametrize("file", ["words.json", "whole_words.safetensors"])
def test_a_part_of_another_model_is_refused(trained: Path, tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(trained, tmp_path / "p5")
    if file == "words.json":
        tokenizer = json.loads((folder / "tasks" / file).read_text())
        tokenizer["model"]["vocab"]["another"] = len(tokenizer["model"]["vocab"])
        (folder / "tasks" / file).write_text(json.dumps(tokenizer))
    else:
        save_file({"table": torch.zeros(512, 16)}, folder / "tasks" / file)
    catalog = Catalog.read(folder / "catalog.parquet")
    with pytest.raises(ArtifactError, match=f"{file} of p5 .* backbone/ (has|expects)"):
        load_generative(folder, catalog.popular(), verify=False)
