"""llara: slots hold what they should, both modes are as long, the curriculum is linear, only the answer has a loss."""

from __future__ import annotations

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
from modeling.generation.api import GenerationSettings, ListQuery
from modeling.generation.base import ItemIdentifiers
from modeling.generation.beam_search import BeamSettings, Text
from modeling.generation.item_tokenizer import TitleTokenizer
from modeling.generation.token_inputs import with_slots
from modeling.methods.base_generative import load_generative
from modeling.methods.llara import ItemVectorProjector, LlaraGenerator
from modeling.methods.llara_prompt import ChoicePrompt, exact_title, held_titles
from modeling.spec import VectorPosition
from service.artifacts.loading import LoadedGenerative, open_artifact
from service.errors import StartError
from testing.artifacts import assert_golden_lists
from testing.datasets import ring_dataset
from testing.models import TITLES, backbone_folder
from tests.service.recommend.test_ranking import serving
from training.data.dataset import Dataset
from training.data.splits import leave_one_out
from training.item_ids.assign import load_writer
from training.loop.examples import Window
from training.methods.llara import LlaraBatch, LlaraModule, random_candidates
from training.methods.next_token import IGNORED, NextTokenModule, ranks_in, write_all
from training.recipes import Recipe, RecipeError, get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

QUIET = Console(quiet=True)
END, LIMIT, CANDIDATES, WIDTH = 2, 5, 4, 8
Folder = Callable[[str], Path]
SETTINGS = [
    *("history.title_tokens=6", "history.limit=4", "method.candidates=6", "method.validation_users=64"),
    *("optimizer.positions=60", "history.instruction=items chosen"),
]


def small(folder: Path, *settings: str) -> Recipe:
    return get_recipe("llara", [*SETTINGS, *settings], backbone=str(folder))


def untrained(
    folder: Path, slots_stand: VectorPosition = "after", match: float = 0.0
) -> tuple[LlaraGenerator, LlaraModule]:
    """A random writer of `TITLES`, and the module that would train it; the retriever scores by row and history."""
    torch.manual_seed(0)
    model, tokenizer, _ = load_writer(small(folder), None)
    spelling = TitleTokenizer(tokenizer, LIMIT)
    tokens = spelling.spell(TITLES, END)
    words = cast(Any, model).get_input_embeddings()
    prompt = ChoicePrompt.of(tokenizer, "items chosen", END, words.weight.shape[0], slots_stand)
    slots = ItemVectorProjector.beside(words, torch.randn(len(TITLES), WIDTH))
    with torch.no_grad():  # at the scale of the words, as they are once trained
        slots.map[2].weight.mul_(0.5)
    module = LlaraModule(
        model, tokens, prompt=prompt, slots=slots, candidates=CANDIDATES, seed=0, match=match, dropout=0.0
    )
    writer = LlaraGenerator(
        model,
        ItemIdentifiers(tokens, np.arange(len(TITLES)), spelling),
        prompt=prompt,
        slots=slots,
        retriever=cast(Any, lambda rows: np.sin(np.arange(len(TITLES)) * 3.0 + rows[-1]).astype(np.float32)),
        candidates=CANDIDATES,
        history_limit=4,
        default=GenerationSettings(1, LIMIT + 1),
    )
    return writer, module


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "gpt2"])
def test_slot_k_holds_the_vector_of_item_k_and_words_stay_words(backbone_folder: Folder, architecture: str) -> None:
    writer, module = untrained(backbone_folder(architecture))
    history, rows = [4, 7, 0], [1, 9, 5, 2]
    ids = torch.tensor([writer.with_candidates(writer.prepare(history), rows)])
    words = cast(Any, writer.model).get_input_embeddings()
    slot_T = ids[0] >= words.weight.shape[0]
    assert int(slot_T.sum()) == len(history) + len(rows)
    module.eval()
    with torch.no_grad():
        found_TH = module.inputs(ids, 0.0)[0]
        expected_MH = writer.slots.map(writer.slots.vectors_ND[[*history, *rows]])
        torch.testing.assert_close(found_TH[slot_T], expected_MH)
        torch.testing.assert_close(found_TH[~slot_T], words(ids[0][~slot_T]))


def test_text_only_is_as_long_and_every_slot_holds_the_untrained_placeholder(backbone_folder: Folder) -> None:
    _, module = untrained(backbone_folder("qwen3"))
    batch = module.collate([Window(np.array([4, 7, 0, 5]))])
    module.train()
    text_BTH, hybrid_BTH = module.inputs(batch.ids_BT, 0.0), module.inputs(batch.ids_BT, 1.0)
    assert text_BTH.shape == hybrid_BTH.shape
    slot_BT = batch.ids_BT >= module.prompt.words
    assert (text_BTH[slot_BT] == module.slots.placeholder_H).all()
    assert not torch.isclose(hybrid_BTH[slot_BT], module.slots.placeholder_H).all(-1).any()
    assert torch.equal(text_BTH[~slot_BT], hybrid_BTH[~slot_BT])
    assert "slots.placeholder_H" not in dict(module.named_parameters())


def test_the_share_of_hybrid_batches_rises_linearly_and_text_only_ones_train_no_projector(
    backbone_folder: Folder,
) -> None:
    _, module = untrained(backbone_folder("qwen3"))
    steps = 4000
    hybrid_T = np.array([module.hybrid(step / steps) for step in range(steps)])
    assert not hybrid_T[0]
    for part in range(4):
        share, error = (part + 0.5) / 4, 4 * np.sqrt(0.25 / (steps / 4))
        assert hybrid_T[part * 1000 : (part + 1) * 1000].mean() == pytest.approx(share, abs=error)
    batch = module.collate([Window(np.array([4, 7, 0, 5]))])
    module.train()
    module(batch, 0.0).backward()
    assert all(weight.grad is None for weight in module.slots.parameters())
    module(batch, 1.0).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in module.slots.parameters())


@pytest.mark.parametrize("stand", ["after", "before"])
def test_only_the_answer_has_a_loss_and_the_prompt_is_that_of_serving(
    backbone_folder: Folder, stand: VectorPosition
) -> None:
    writer, module = untrained(backbone_folder("qwen3"), stand)
    windows = [Window(np.array([4, 7, 0, 5])), Window(np.array([1, 2]))]
    for _ in range(8):
        batch = module.collate(windows)
        for ids_T, targets_T, window in zip(batch.ids_BT, batch.targets_BT, windows, strict=True):
            real_T = targets_T != IGNORED
            answer, asked = targets_T[real_T].tolist(), ids_T[: int(real_T.nonzero()[0]) + 1].tolist()
            rows = [token - module.prompt.words - 1 for token in asked if token >= module.prompt.words]
            history, candidates = rows[:-CANDIDATES], rows[-CANDIDATES:]
            assert history == window.rows[: len(history)].tolist()
            target = int(window.rows[len(history)])
            assert answer == [*module.names[target].tolist(), END] and writer.title(target) == TITLES[target]
            assert candidates.count(target) == 1 and not set(candidates) & set(history)
            assert asked == [*module.prompt.prefix, *writer.with_candidates(writer.prepare(history), candidates)]
            first = asked.index(module.prompt.words + history[0] + 1)
            title = module.names[history[0]].tolist()
            beside = asked[first + 1 :] if stand == "before" else asked[:first][-len(title) :]
            assert beside[: len(title)] == title


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "gpt2"])
def test_the_second_loss_is_on_the_answers_slot_and_only_where_vectors_are_seen(
    backbone_folder: Folder, architecture: str
) -> None:
    """A loss that is given the states half-way at the candidates' slots, in the order of the prompt."""
    _, module = untrained(backbone_folder(architecture), "before", match=0.5)
    _, plain = untrained(backbone_folder(architecture), "before")
    for each in (module, plain):
        each.train()
        each.model.eval()  # gpt2 drops out of its own
    assert module.matching is not None
    torch.manual_seed(3)
    batch = module.collate([Window(np.array([4, 7, 0, 5])), Window(np.array([1, 2]))])
    for ids_T, targets_T, slots_C, right in zip(
        batch.ids_BT, batch.targets_BT, batch.slots_BC, batch.right_B, strict=True
    ):
        answer = targets_T[targets_T != IGNORED].tolist()[:-1]
        rows = (ids_T[slots_C] - module.prompt.words - 1).tolist()
        assert len(rows) == CANDIDATES and module.names[rows[int(right)]].tolist() == answer
    with torch.no_grad():
        read = module.read(batch, 1.0, output_hidden_states=True)
        middle_BTH = read.hidden_states[len(read.hidden_states) // 2]
        scores_BC = torch.stack(
            [module.matching(middle_BTH[row, slots_C])[:, 0] for row, slots_C in enumerate(batch.slots_BC)]
        )
        expected = -0.5 * scores_BC.log_softmax(-1)[torch.arange(2), batch.right_B].sum()
        torch.testing.assert_close(module(batch, 1.0) - NextTokenModule.forward(module, batch, 1.0), expected)
        torch.testing.assert_close(module(batch, 0.0), plain(batch, 0.0))
    module(batch, 1.0).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in module.matching.parameters())


def test_a_prompt_with_fewer_candidates_has_no_slot_where_it_has_none(backbone_folder: Folder) -> None:
    """In a small catalog a long history leaves fewer to choose from."""
    _, module = untrained(backbone_folder("qwen3"), match=1.0)
    module.candidates = len(TITLES)
    module.train()
    torch.manual_seed(0)
    batch = module.collate([Window(np.arange(len(TITLES))), Window(np.array([1, 2]))])
    few_C, many_C = batch.slots_BC[0] >= 0, batch.slots_BC[1] >= 0
    assert not few_C.all() and many_C.all()
    alone = [
        LlaraBatch(batch.ids_BT[[row]], batch.targets_BT[[row]], batch.slots_BC[[row]][:, own_C], batch.right_B[[row]])
        for row, own_C in enumerate((few_C, many_C))
    ]
    with torch.no_grad():
        torch.testing.assert_close(module(batch, 1.0), module(alone[0], 1.0) + module(alone[1], 1.0))


def test_random_candidates_hold_the_target_once_at_any_place() -> None:
    rng, places = np.random.default_rng(0), set()
    for _ in range(200):
        rows = random_candidates(3, np.array([3, 1, 2]), 12, 5, rng).tolist()
        assert len(set(rows)) == 5 and not {1, 2} & set(rows)
        places.add(rows.index(3))
    assert places == set(range(5))
    assert sorted(random_candidates(0, np.array([1]), 4, 9, rng).tolist()) == [0, 2, 3], "a catalog may be too small"


@pytest.mark.parametrize(
    ("text", "held", "exact"),
    [
        ("Heat", [0], 0),
        ("heat", [0], None),
        ("I choose Alien", [2], None),
        ("Heathers", [0, 1], 1),  # as published "Heat" is found in it, so it is invalid
        ("Heat or Alien", [0, 2], None),
        ("Alien\nHeat", [2], 2),
        ("Casablanca", [], None),
        ("", [], None),
    ],
)
def test_the_scorer_as_published_and_the_strict_one(text: str, held: list[int], exact: int | None) -> None:
    titles = ["Heat", "Heathers", "Alien"]
    assert held_titles(text, titles) == held and exact_title(text, titles) == exact


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "gpt2"])
def test_a_batch_is_written_as_one_by_one_and_as_greedy_decoding_writes(
    backbone_folder: Folder, architecture: str
) -> None:
    writer, _ = untrained(backbone_folder(architecture))
    histories = [[4, 7, 0], [1], [8, 8, 2, 3], []]
    prompts = [writer.prepare(history) for history in histories]
    together = writer.write(prompts, [ListQuery(5, np.array(history, np.int64)) for history in histories])
    model = cast(Any, writer.model)
    for prompt, history, written in zip(prompts, histories, together, strict=True):
        wanted = ListQuery(5, np.array(history, np.int64))
        (alone,) = writer.write([prompt], [wanted])
        assert written.rows_K.tolist() == alone.rows_K.tolist()
        assert written.generated[0].text == alone.generated[0].text
        rows = writer._order(prompt, wanted)[:CANDIDATES]
        ids = torch.tensor([[*writer.prompt.prefix, *writer.with_candidates(prompt, rows)]])
        with torch.no_grad():
            embeds = with_slots(model.get_input_embeddings(), writer.slots(), ids)
            out = model.generate(
                inputs_embeds=embeds, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1,
                max_new_tokens=LIMIT + 1, eos_token_id=END, pad_token_id=0,
            )  # fmt: skip
        assert alone.generated[0].text == writer._shown([token for token in out[0].tolist() if token != END])


def test_writing_stops_at_the_first_end(backbone_folder: Folder) -> None:
    """Greedily, with nothing written after an end that is only just the likeliest."""
    writer, _ = untrained(backbone_folder("gpt2"))
    head = cast(Any, writer.model).get_output_embeddings().weight
    prompt, rows = writer.prepare([4, 7]), [1, 9, 5, 2]
    ((_, _, steps, _),) = writer.choose([prompt], [rows])
    ((text,),) = writer._generator.search([writer.with_candidates(prompt, rows)], BeamSettings(1, LIMIT + 1))
    assert len(text.tokens) == steps == LIMIT + 1 and not text.ended
    with torch.no_grad():
        head[END] = head[text.tokens[0]] * 1.0001
    ((after, _, steps, _),) = writer.choose([prompt], [rows])
    assert after[0].text == "" and steps == 1


def test_the_chosen_candidate_is_first_and_the_others_follow_as_the_retriever_has_them(
    backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, _ = untrained(backbone_folder("qwen3"))
    never, only = np.array([3, 11]), np.arange(1, 12)
    prompt, wanted = writer.prepare([3]), ListQuery(8, never, only)
    order = [row for row in np.argsort(-writer.retriever([3])).tolist() if row in only and row not in never]
    for said, first in ((order[2], order[2]), (11, None), (None, None)):
        tokens = () if said is None else tuple(writer.names.tokens[said].tolist())
        monkeypatch.setattr(writer._generator, "search", lambda *_, tokens=tokens, **__: [[Text(tokens, -1.0, True)]])
        (written,) = writer.write([prompt], [wanted])
        rest = [row for row in order if row != first]
        assert written.rows_K.tolist() == [*([] if first is None else [first]), *rest][:8]
        assert written.filled == (8 if first is None else 7) and (np.diff(written.scores_K) < 0).all()
        assert written.generated[0].row == first and written.generated[0].valid == (first is not None)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=96)


@pytest.fixture(scope="module")
def trained(ring: Dataset, backbone_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On a backbone that is trained through LoRA."""
    folder = tmp_path_factory.mktemp("artifacts")
    settings = ["optimizer.epochs=4", "items.dim=32", "backbone.width=32"]
    run(get_recipe("sasrec", settings), ring, RunOptions(out=folder / "sasrec"), QUIET)
    recipe = small(
        backbone_folder("qwen3"), "optimizer.epochs=2", "optimizer.backbone_rate=0.01", "method.slots=before",
        "method.match=1",
    )  # fmt: skip
    run(recipe, ring, RunOptions(out=folder / "llara", id_model=folder / "sasrec"), QUIET)
    return folder / "llara"


def test_the_artifact_answers_as_it_was_evaluated(trained: Path, ring: Dataset) -> None:
    artifact = load_generative(trained, Catalog.read(trained / "catalog.parquet").popular())
    writer, manifest = artifact.model, artifact.manifest
    assert isinstance(writer, LlaraGenerator) and manifest.training["choice"]["users"] == 64
    assert writer.prompt.slots == "before"
    stored = load_file(trained / "item_slots.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in writer.slots.state_dict().items())
    assert_golden_lists(artifact, ring)
    targets = leave_one_out(ring).validation
    ranks = ranks_in(write_all(writer, list(targets.histories())), targets.rows_T, ring.n_items)
    assert float((ranks <= 10).mean()) == pytest.approx(manifest.metrics["validation_recall@10"])


def test_the_service_opens_it_and_refuses_it_without_its_slots(trained: Path, tmp_path: Path) -> None:
    parts = open_artifact(trained, "cpu")
    assert isinstance(parts, LoadedGenerative) and parts.recipe == "llara" and parts.reads == ("ids", "text")
    held = {piece.kind: piece.bytes for piece in parts.pieces}
    width = load_file(trained / "item_slots.safetensors")["placeholder_H"].nbytes
    assert held["item_inputs"] == (1 + len(parts.catalog)) * width, "GET /artifacts states it"
    shutil.copytree(trained, tmp_path / "gone")
    (tmp_path / "gone" / "item_slots.safetensors").unlink()
    with pytest.raises(StartError, match=r"lacks item_slots\.safetensors"):
        open_artifact(tmp_path / "gone", "cpu")


@pytest.mark.asyncio
async def test_the_service_ranks_with_it_also_what_no_batch_holds(trained: Path) -> None:
    rows, history = [0, 9, 4, 7, 2, 11, 5, 31], [1, 2]
    stage = {"artifact": "llara", "candidates": 8}
    async with serving(trained.parent / "sasrec", trained) as both:
        model = cast(Any, both.service.recommenders["llara"].parts).model
        (scores_C,) = model.score([model.prepare_candidates(history, sorted(rows))])
        answer = await both.rank([*both.named(rows), {"title": "red lamp"}], history, recipe="llara")
        assert answer.status_code == 200 and len(answer.json()["items"]) == 9, "a free title is a candidate too"
        answer = (await both.rank(both.named(rows), history, recipe="llara")).json()["items"]
        found = {item["item_id"]: item["score"] for item in answer}
        assert [found[both.ids[row]] for row in sorted(rows)] == pytest.approx(scores_C.tolist(), abs=1e-4)
        staged = await both.recommend(history, k=8, rerank=stage)
        listed = await both.rank([item["item_id"] for item in staged["items"]], history, artifact="llara")
        assert staged["rerank"]["artifact"]["recipe"] == "llara" and staged["degraded"] == []
        assert staged["items"] == listed.json()["items"]
    async with serving(trained.parent / "sasrec", trained, generative_batch_tokens=128) as small:
        many = list(range(40))
        answer = await small.rank(small.named(many), history, artifact="llara")
        found = {item["item_id"]: item["score"] for item in answer.json()["items"]}
        (scores_C,) = model.score([model.prepare_candidates(history, many)])
        assert [found[small.ids[row]] for row in many] == pytest.approx(scores_C.tolist(), abs=1e-4)


def test_the_epoch_that_chooses_best_is_kept(
    trained: Path, ring: Dataset, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though another has better figures over the whole catalog, where all places but the first are the retriever's."""
    told = iter(((0.2, 0.1), (0.1, 0.3), (0.3, 0.2), (0.0, 0.0)))  # NDCG@10 and HR@1 of each epoch, and at the end

    def written(*_: object) -> dict[str, float]:
        ndcg, hit = next(told)
        monkeypatch.setattr("training.methods.llara.choice_report", lambda *_, **__: {"hr@1": hit})
        return {"ndcg@10": ndcg, "recall@10": 0.0}

    monkeypatch.setattr("training.methods.base_generative.written_metrics", written)
    recipe = small(backbone_folder("qwen3"), "optimizer.epochs=3")
    options = RunOptions(out=tmp_path / "x", id_model=trained.parent / "sasrec")
    assert run(recipe, ring, options, QUIET).fitted.best_epoch == 2


def test_what_cannot_be_trained_is_refused(backbone_folder: Folder, ring: Dataset, tmp_path: Path) -> None:
    folder = backbone_folder("qwen3")
    with pytest.raises(RecipeError, match="builds on 'sasrec': give its artifact with --id-model"):
        run(small(folder), ring, RunOptions(out=tmp_path / "x"), QUIET)
    with pytest.raises(RecipeError, match="'llara' writes with a causal language model: backbone 'minilm'"):
        get_recipe("llara", backbone="minilm")


def test_several_processes_are_refused(
    backbone_folder: Folder, ring: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="'llara' trains in one process: started in 2; allowed is 1"):
        run(small(backbone_folder("qwen3")), ring, RunOptions(out=tmp_path / "x"), QUIET)
