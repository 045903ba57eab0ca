"""What recipes claim is really connected: each test uses what a run builds, not the formula, and dies with its wire."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from safetensors.numpy import load_file
from torch import Tensor, nn

from modeling.backbone.loading import BackboneError, load_backbone
from modeling.encoder.build import build_model
from modeling.spec import BackboneSpec
from testing.datasets import SMALL, ring_dataset, trained_sasrec
from testing.models import backbone_folder
from training.data.dataset import Dataset
from training.data.splits import Split, leave_one_out
from training.item_ids.rqvae import ResidualQuantiser
from training.loop.examples import EpochWindows
from training.loop.fit import FitOptions, _arguments
from training.loop.module import RetrievalModule
from training.loop.trainer import RecommenderTrainer
from training.methods.base import Job
from training.recipe import CodesSpec, training_method
from training.recipes import get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

QUIET = Console(quiet=True)
Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=48, items=30)


@pytest.fixture(scope="module")
def sasrec(ring: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_sasrec(ring, tmp_path_factory.mktemp("artifacts"), [*SMALL, "optimizer.epochs=2"])


def asked_otherwise(dataset: Dataset) -> Dataset:
    """The same training part; the last two items of every user, which are asked for, are others."""
    rows = dataset.rows.copy()
    for user in range(dataset.n_users):
        stop = int(dataset.offsets_U1[user + 1])
        rows[stop - 2 : stop] = (rows[stop - 2 : stop] + 7 + user % 5) % dataset.n_items
    return replace(dataset, rows=rows)


# -- nothing that is asked for is learned ------------------------------------------------------------------------------


class _Seen(Exception):
    """Carries what a backbone would have been trained on."""

    def __init__(self, sequences: list[NDArray[Any]]) -> None:
        super().__init__()
        self.sequences = [np.asarray(rows).tolist() for rows in sequences]


def test_tiny_reads_the_training_part_and_nothing_else(
    ring: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run gives to the pretraining of ``tiny`` is the training part, whatever comes after it."""

    def caught(titles: Any, categories: Any, sequences: list[NDArray[Any]], **options: Any) -> Path:
        raise _Seen(sequences)

    monkeypatch.setattr("training.run.ensure_tiny", caught)
    found = []
    for dataset in (ring, asked_otherwise(ring)):
        with pytest.raises(_Seen) as seen:
            run(get_recipe("anyo", backbone="tiny"), dataset, RunOptions(out=tmp_path / "out"), QUIET)
        found.append(seen.value.sequences)
    split = leave_one_out(ring)
    assert found[0] == found[1] == [split.train_row(user).tolist() for user in range(ring.n_users)]


CODES = ["method.codes.size=4", "method.codes.levels=2", "backbone.width=32", "backbone.depth=1"]
NAMING: dict[str, tuple[str, list[str]]] = {
    "rq-vae": ("tiger", [*CODES, "method.codes.epochs=3", "items.text_source=FOLDER"]),
    "rq-vae, collaborative": (
        "tiger", [*CODES, "method.codes.epochs=3", "method.codes.collaborative=0.9", "items.text_source=FOLDER"],
    ),
    "k-means, collaborative": (
        "tiger",
        [*CODES, "method.codes.kind=residual-kmeans", "method.codes.collaborative=0.9", "items.text_source=FOLDER"],
    ),
    "sequential": (
        "p5", ["method.codes.kind=sequential", "method.codes.size=4", 'method.tasks.families=["sequential"]'],
    ),
    "collaborative": ("p5", ["method.codes.size=4", "method.codes.clusters=3", 'method.tasks.families=["sequential"]']),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMING)
def test_names_of_items_do_not_tell_what_is_asked_for(
    case: str, ring: Dataset, backbone_folder: Folder, tmp_path: Path
) -> None:
    name, settings = NAMING[case]
    recipe = get_recipe(name, [setting.replace("FOLDER", str(backbone_folder("qwen3"))) for setting in settings])
    names = [
        training_method(recipe.method.kind)(Job(recipe, split, QUIET))
        .named_items(tmp_path / str(number), 0)
        .tokens.tokens
        for number, split in enumerate((leave_one_out(ring), leave_one_out(asked_otherwise(ring))))
    ]
    assert np.array_equal(*names)


@pytest.mark.parametrize("wrong", ["sees what follows", "reads padding"])
def test_our_own_transformer_is_proved_not_to_leak_when_it_is_loaded(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = BackboneSpec(width=16, depth=1, heads=2, dropout=0.0)
    plain = F.scaled_dot_product_attention
    model, _ = load_backbone(spec)
    assert model.training, "a network that is trained from scratch comes ready to be trained"

    def leaking(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        if wrong == "sees what follows" and options["attn_mask"] is None:
            options["is_causal"] = False
        elif wrong == "reads padding" and options["attn_mask"] is not None:
            options["attn_mask"] = None
        return plain(query, key, value, **options)

    monkeypatch.setattr("modeling.backbone.transformer.F.scaled_dot_product_attention", leaking)
    with pytest.raises(BackboneError, match="was asked for causal attention"):
        load_backbone(spec)


# -- what trains the language model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["minilm", "tiny", "other"])
def test_anyo_trains_its_backbone_through_lora_unless_told_otherwise(backbone: str) -> None:
    adapter = get_recipe("anyo", backbone=backbone).adapter
    assert (adapter.kind, adapter.rank, adapter.targets) == ("lora", 16, "all-linear")


def test_an_artifact_of_anyo_holds_trained_lora_of_every_map(
    ring: Dataset, backbone_folder: Folder, tmp_path: Path
) -> None:
    settings = ["optimizer.epochs=2", "optimizer.positions=60", "items.dim=16"]
    recipe = get_recipe("anyo", settings, backbone=str(backbone_folder("qwen3")))
    run(recipe, ring, RunOptions(out=tmp_path / "out"), QUIET)
    weights = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    maps = {name.split(".")[-3] for name in weights}
    assert maps == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(weights) == 2 * 2 * 7, "two matrices of seven maps in two layers"
    learned = [name for name, value in weights.items() if "lora_B" in name and np.abs(value).max() > 0]
    assert len(learned) == 2 * 7, "the second matrices begin at zero"


def rates(name: str, settings: list[str], split: Split, tmp_path: Path) -> dict[str, float]:
    """The rate of every trained weight of a dense recipe."""
    recipe = get_recipe(name, settings)
    model = build_model(recipe.model_spec(), catalog_size=split.dataset.n_items)
    module = RetrievalModule(model.encoder, recipe.method.objective, popularity_N=split.popularity())
    trainer = RecommenderTrainer(
        module,
        _arguments(recipe, FitOptions(work=tmp_path), False, "eval_ndcg@10"),
        windows=EpochWindows(split.train_rows(), limit=50, seed=0),
        optimizer=recipe.optimizer,
        evaluate_now=dict,
        callbacks=[],
    )
    rate_of = {id(p): group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    return {name: rate_of[id(p)] for name, p in module.named_parameters() if p.requires_grad}


def test_no_weight_of_our_own_transformer_counts_as_pretrained(ring: Dataset, tmp_path: Path) -> None:
    found = rates("sasrec", [*SMALL, "optimizer.rate=0.007"], leave_one_out(ring), tmp_path)
    assert any("positions" in name for name in found) and any(name.endswith("backbone.norm.weight") for name in found)
    assert set(found.values()) == {0.007}


# -- objectives --------------------------------------------------------------------------------------------------------


def test_the_sampled_softmax_of_a_run_is_corrected_for_how_it_drew(ring: Dataset) -> None:
    """Where all items score alike, the full loss is ln N, and so is that of many draws; uncorrected it would be the
    logarithm of the number of draws."""
    split = leave_one_out(ring)
    recipe = get_recipe("sasrec", [*SMALL, "method.objective.kind=sampled", "method.objective.negatives=4000"])
    model = build_model(recipe.model_spec(), catalog_size=ring.n_items)
    module = RetrievalModule(model.encoder, recipe.method.objective, popularity_N=split.popularity())
    with torch.no_grad():
        model.encoder.items.ids.weight[:] = 1.0
    torch.manual_seed(0)
    batch = module.collate(EpochWindows(split.train_rows(), limit=50, seed=0).windows)
    loss = module(batch).item() / len(batch.targets_P)
    assert loss == pytest.approx(math.log(ring.n_items), abs=0.05)
    popular = np.bincount(module.loss.log_draws_N.exp().multinomial(4000, True).numpy(), minlength=ring.n_items)
    expected = (split.popularity() + 1) / (split.popularity() + 1).sum()
    assert np.abs(popular / 4000 - expected).max() < 0.02


@pytest.mark.parametrize("kind", ["full", "sampled", "in_batch"])
def test_a_run_leaves_out_of_its_loss_what_users_have_seen(kind: str, ring: Dataset) -> None:
    """With equal vectors the loss is the log of the number of candidates: fewer, by those seen before."""
    split, losses = leave_one_out(ring), {}
    for masked in (False, True):
        settings = [f"method.objective.kind={kind}", f"method.objective.mask_seen={str(masked).lower()}"]
        recipe = get_recipe("sasrec", [*SMALL, *settings])
        torch.manual_seed(0)
        model = build_model(recipe.model_spec(), catalog_size=ring.n_items)
        module = RetrievalModule(model.encoder, recipe.method.objective, popularity_N=split.popularity())
        with torch.no_grad():
            model.encoder.items.ids.weight[:] = 1.0
        batch = module.collate(EpochWindows(split.train_rows(), limit=50, seed=0).windows)
        losses[masked] = module(batch).item() / len(batch.targets_P)
        seen = [len(set(rows[:at].tolist()) - {rows[at]}) for rows in split.train_rows() for at in range(1, len(rows))]
    assert losses[True] < losses[False] - 0.01
    if kind == "full":
        assert losses[True] == pytest.approx(np.log(ring.n_items - np.array(seen)).mean(), abs=1e-4)


def ids_of(recipe_settings: list[str], ring: Dataset, sasrec: Path, out: Path) -> NDArray[np.float32]:
    recipe = get_recipe("sasrec", [*SMALL, "requires=sasrec", *recipe_settings])
    run(recipe, ring, RunOptions(out=out, id_model=sasrec), QUIET)
    found: NDArray[np.float32] = load_file(out / "parts" / "items.safetensors")["ids.weight"]
    return found


def test_ids_start_where_the_required_model_has_them(ring: Dataset, sasrec: Path, tmp_path: Path) -> None:
    anchor = load_file(sasrec / "parts" / "items.safetensors")["ids.weight"][: ring.n_items]
    started = ids_of(["optimizer.epochs=1", "optimizer.rate=1e-9"], ring, sasrec, tmp_path / "started")
    np.testing.assert_allclose(started[: ring.n_items], anchor, atol=1e-5)
    np.testing.assert_allclose(started[ring.n_items], anchor.mean(0), atol=1e-5)


def test_the_pull_keeps_ids_near_the_required_model_and_ends(ring: Dataset, sasrec: Path, tmp_path: Path) -> None:
    anchor = load_file(sasrec / "parts" / "items.safetensors")["ids.weight"][: ring.n_items]
    settings = ["optimizer.epochs=6", "optimizer.patience=6", "optimizer.rate=0.01", "optimizer.weight_decay=0"]
    moved = {}
    for name, more in (
        ("free", []),
        ("pulled", ["method.objective.pull=1000", "method.objective.pull_share=1"]),
        ("pulled at first", ["method.objective.pull=1000", "method.objective.pull_share=0.05"]),
    ):
        found = ids_of([*settings, *more], ring, sasrec, tmp_path / name)
        moved[name] = float(np.square(found[: ring.n_items] - anchor).mean())
    assert moved["pulled"] < 0.3 * moved["free"]
    assert moved["pulled at first"] > 2 * moved["pulled"]


# -- the residual quantiser --------------------------------------------------------------------------------------------


def quantiser(commitment: float) -> tuple[ResidualQuantiser, Tensor]:
    torch.manual_seed(0)
    vectors_NC = torch.randn(64, 12)
    model = ResidualQuantiser(12, CodesSpec(size=4, levels=2, dim=6, commitment=commitment))
    model.start(vectors_NC, 0)
    with torch.no_grad():  # away from k-means, where the codebooks' gradient is zero
        model.codebooks_LKD += 0.05 * torch.randn_like(model.codebooks_LKD)
    return model, vectors_NC


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return {name: torch.zeros(()) if value is None else value for name, value in zip(named, found, strict=True)}


@pytest.mark.parametrize("commitment", [0.25, 2.0])
def test_each_term_of_the_quantisers_loss_moves_what_it_is_for(commitment: float) -> None:
    """By hand, level by level: the codebooks follow the residuals, and the encoder stays near the codebooks."""
    model, vectors_NC = quantiser(commitment)
    latent_ND = model.encoder(vectors_NC)
    residual_ND, codebook, commit = latent_ND, torch.zeros(()), torch.zeros(())
    for codes_KD in model.codebooks_LKD:
        chosen_ND = codes_KD[torch.cdist(residual_ND, codes_KD).argmin(-1)]
        codebook = codebook + (residual_ND.detach() - chosen_ND).square().sum() / 64
        commit = commit + (residual_ND - chosen_ND.detach()).square().sum() / 64
        residual_ND = residual_ND - chosen_ND.detach()
    total_ND = latent_ND + (latent_ND - residual_ND - latent_ND).detach()
    rebuilt = (model.decoder(total_ND) - vectors_NC).square().sum() / 64
    assert codebook.item() > 1e-4 and commit.item() > 1e-4
    expected = gradients(model, rebuilt + codebook + commitment * commit)
    found = gradients(model, model(vectors_NC))
    assert float(expected["codebooks_LKD"].abs().max()) > 1e-5
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-3)
    without = gradients(model, rebuilt + codebook)
    assert any(not torch.allclose(found[name], value, atol=1e-4) for name, value in without.items())
