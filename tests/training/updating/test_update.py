"""`training update`: what a new model starts from, what it refuses, and that it can be ranked beside its parent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from modeling.artifact.manifest import read_manifest
from modeling.encoder.item_tower import ItemTower
from modeling.methods.dense import load_artifact
from modeling.spec import ItemsSpec
from testing.datasets import QUIET, SMALL, write_dataset
from testing.models import backbone_folder
from training.cli import app
from training.data.dataset import Dataset, read_dataset
from training.data.splits import leave_one_out
from training.recipes import get_recipe
from training.run import RunOptions, run
from training.updating.warm_start import start_items

__all__ = ["backbone_folder"]  # a fixture

NEW_ITEMS = {f"i{n}" for n in range(44, 50)}
STILL = ["optimizer.rate=1e-9", "optimizer.weight_decay=0"]
"""Settings of a training that moves nothing."""
FORMS = {
    "sasrec": [],
    "anyo": [
        "items.dim=32",
        "optimizer.positions=50",
        "items.cold=mapped",
        "history.dropout=0",
        "backbone.layers=null",
        "method.warm_up=1",  # an update has the parent's network, and does not begin without one
    ],
    "item_softmax": ["optimizer.positions=50"],
}


def earlier(new: Path, folder: Path, *, dropped: int = 2, without: set[str] = NEW_ITEMS) -> Path:
    """The data some time ago: without some items, and without the newest interactions of every user, from the first one
    with such an item on."""
    folder.mkdir(parents=True)
    events = pl.read_csv(new / "interactions.csv")
    kept = events.filter(pl.int_range(pl.len()).over("user_id") < pl.len().over("user_id") - dropped)
    new_yet = pl.col("item_id").is_in(without).cum_sum().over("user_id") > 0
    kept.filter(~new_yet).write_csv(folder / "interactions.csv")
    lines = (new / "items.jsonl").read_text().splitlines()
    items = [line for line in reversed(lines) if json.loads(line)["item_id"] not in without]
    (folder / "items.jsonl").write_text("\n".join(items) + "\n")
    return folder


def update(parent: Path, data: Path, out: Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["update", str(parent), "--data", str(data), "--out", str(out), *more])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``new`` and ``old`` data; a user of three interactions had two before."""
    place = tmp_path_factory.mktemp("updated")
    new = write_dataset(place / "new")
    events = pl.read_csv(new / "interactions.csv")
    more = pl.DataFrame({"user_id": ["short"] * 3, "item_id": ["i1", "i2", "i3"], "timestamp": [0, 1, 2]})
    pl.concat([events, more]).write_csv(new / "interactions.csv")
    earlier(new, place / "old", dropped=1)
    return place


def trained(place: Path, name: str, data: str, recipe: str = "sasrec", settings: list[str] | None = None) -> Path:
    out = place / name
    chosen = [*SMALL, "optimizer.epochs=5"] if settings is None else settings
    run(get_recipe(recipe, chosen), read_dataset(place / data), RunOptions(out=out), QUIET)
    return out


@pytest.fixture(scope="module")
def parent(place: Path) -> Path:
    return trained(place, "parent", "old")


@pytest.fixture(scope="module")
def updated(place: Path, parent: Path) -> Path:
    done = update(parent, place / "new", place / "updated")
    assert done.exit_code == 0, done.output
    return place / "updated"


def test_the_manifest_says_what_it_was_made_of(place: Path, parent: Path, updated: Path) -> None:
    before, after = read_manifest(parent), read_manifest(updated)
    record = after.training["update"]
    assert record["parent"] == before.version and record["ancestors"] == [before.version]
    assert record["parent_data_sha256"] == before.data_sha256 != after.data_sha256
    assert (record["new_items"], record["full_epochs"], after.training["epochs"]) == (6, 5.0, 1.0)
    assert record["unasked_validation"] == 1, "the user of three interactions was trained on whole"


def test_a_second_update_counts_from_the_full_training(place: Path, updated: Path) -> None:
    newer = place / "newer"
    newer.mkdir()
    (newer / "items.jsonl").write_text((place / "new" / "items.jsonl").read_text())
    events = pl.read_csv(place / "new" / "interactions.csv")
    more = pl.DataFrame({"user_id": ["u0"], "item_id": ["i7"], "timestamp": [99]})
    pl.concat([events, more]).write_csv(newer / "interactions.csv")
    done = update(updated, newer, place / "twice", "--share", "0.4", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["update"]
    assert found["full_epochs"] == 5.0 and found["epochs_asked"] == 2 and len(found["ancestors"]) == 2


@pytest.mark.parametrize("recipe", FORMS)
def test_training_begins_with_the_parents_model(
    recipe: str, place: Path, parent: Path, backbone_folder: Callable[[str], Path]
) -> None:
    """A training that moves nothing gives the parent's vectors of the same histories and items."""
    rates = list(STILL)
    if recipe != "sasrec":
        rates.append("optimizer.backbone_rate=1e-9")
        made = get_recipe(recipe, [*FORMS[recipe], "optimizer.epochs=1"], backbone=str(backbone_folder("qwen3")))
        parent = place / f"parent-{recipe}"
        run(made, read_dataset(place / "old"), RunOptions(out=parent), QUIET)
    done = update(parent, place / "new", place / f"still-{recipe}", *(w for s in rates for w in ("--set", s)))
    assert done.exit_code == 0, done.output
    old, new = (read_dataset(place / name) for name in ("old", "new"))
    before, after = load_artifact(parent), load_artifact(place / f"still-{recipe}")
    histories = [["i3"], ["i5", "i7", "i9"], ["i40", "i1", "i4", "i2"]]
    vectors = [
        artifact.encoder.encode([artifact.encoder.prepare([data.row_of[item] for item in each]) for each in histories])
        for artifact, data in ((before, old), (after, new))
    ]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-4)
    chosen = [item for item in old.item_ids if before.encoder.items.chosen_N is None or _chosen(old)[old.row_of[item]]]
    np.testing.assert_allclose(
        before.item_vectors_ND[[old.row_of[item] for item in chosen]],
        after.item_vectors_ND[[new.row_of[item] for item in chosen]],
        atol=1e-4,
    )


def _chosen(data: Dataset) -> Any:
    return leave_one_out(data).popularity() > 0


def test_new_items_without_titles_differ_and_are_as_long_as_the_others() -> None:
    torch.manual_seed(0)
    old, new = (ItemTower(ItemsSpec(tower="id", dim=8, normalize=False), catalog_size=n) for n in (5, 8))
    old.ids.weight.data.mul_(3)
    rows_N = np.array([4, -1, 0, 1, -1, 2, 3, -1])
    start_items(new, dict(old.state_dict()), rows_N, ids_given=False)
    weight, own = new.ids.weight.detach(), old.ids.weight.detach()
    torch.testing.assert_close(weight[[0, 2, 3, 5, 6, 8]], own[[4, 0, 1, 2, 3, 5]])
    fresh = weight[[1, 4, 7]]
    torch.testing.assert_close(fresh.norm(dim=1), own[:-1].norm(dim=1).mean().expand(3))
    assert float((fresh[:, None] - fresh).norm(dim=-1).sum()) > 1


@pytest.mark.parametrize("cold", ["title", "mapped"])
def test_new_items_with_titles_stand_where_an_added_item_would(cold: str) -> None:
    torch.manual_seed(0)
    spec = ItemsSpec(tower="both", dim=8, cold=cold, text_source="minilm")
    titles = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    old, new = (ItemTower(spec, catalog_size=n, text_dim=6) for n in (5, 7))
    old.set_text(titles[:5])
    new.set_text(titles)
    if cold == "mapped":
        old.set_cold(torch.ones(5, dtype=torch.bool), torch.randn(6, 8), torch.randn(8), 1.0)
    start_items(new, dict(old.state_dict()), np.array([0, 1, 2, 3, 4, -1, -1]), ids_given=False)
    found = new.finish(new.table()[5:7])
    torch.testing.assert_close(found, old.cold_vectors(torch.from_numpy(titles[5:])), atol=1e-5, rtol=0)


def test_a_run_that_was_cut_off_goes_on_and_ends_the_same(place: Path, parent: Path, updated: Path) -> None:
    out = place / "resumed"
    done = update(parent, place / "new", out, "--keep-work")
    assert done.exit_code == 0, done.output
    shutil.rmtree(out)
    again = update(parent, place / "new", out, "--keep-work")
    assert again.exit_code == 0, again.output
    assert "going on from checkpoint" in again.output
    first, second = (load_artifact(folder).item_vectors_ND for folder in (updated, out))
    np.testing.assert_array_equal(first, second)


def test_parent_update_and_full_training_answer_the_same_users(place: Path, parent: Path, updated: Path) -> None:
    full = trained(place, "full", "new")
    words = ["compare", str(full), str(updated), str(parent), "--data", str(place / "new"), "--no-ledger", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    rows = {row["method"]: row for row in json.loads(done.stdout)["rows"]}
    questions = {rows[name]["questions"] for name in ("full", "updated", "parent")}
    assert len(questions) == 1, rows.keys()
    assert rows["parent"]["ndcg@10"]["value"] > 0.02, "its histories were read by item id"
    alone = CliRunner().invoke(app, [*words[:1], str(full), str(parent), *words[4:]])
    assert alone.exit_code == 2 and "another catalog" in alone.output, "nobody says that it is an ancestor"


def _popularity(place: Path) -> tuple[Path, Path]:
    return trained(place, "counted", "old", "popularity", []), place / "new"


def _same(place: Path) -> tuple[Path, Path]:
    return place / "parent", place / "old"


def _removed(place: Path) -> tuple[Path, Path]:
    return place / "parent", earlier(place / "new", place / "fewer", dropped=0, without={"i3"})


def _seen(place: Path) -> tuple[Path, Path]:
    """The parent was trained on interactions that are asked for here."""
    return place / "parent", earlier(place / "new", place / "shorter", dropped=3, without=set())


def _refitted(place: Path) -> tuple[Path, Path]:
    chosen, data = get_recipe("sasrec", [*SMALL, "optimizer.epochs=1"]), read_dataset(place / "old")
    run(chosen, data, RunOptions(out=place / "refitted", refit=True), QUIET)
    return place / "refitted", place / "new"


REFUSED: dict[str, tuple[Callable[[Path], tuple[Path, Path]], list[str], str]] = {
    "other method": (_popularity, [], "method 'counts', which cannot be updated; methods that can: dense"),
    "nothing new": (_same, [], "was trained on this very data: there is nothing to update it with"),
    "item removed": (_removed, [], "lacks 1 items of artifact parent, first 'i3': an update adds items and removes"),
    "seen answers": (_seen, [], "the parent may have seen what is asked for"),
    "seen validation": (_refitted, [], "was fitted on train+validation: validation was trained on"),
    "other model": (_same, ["--set", "items.dim=8"], "setting 'items.dim=8' would make another model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_updated_is_refused_in_one_sentence(case: str, place: Path, parent: Path) -> None:
    make, more, expected = REFUSED[case]
    artifact, data = make(place)
    done = update(artifact, data, place / "refused", *more)
    assert done.exit_code == 2, done.output
    assert expected in " ".join(done.output.split()) and "Traceback" not in done.output
    assert not (place / "refused").exists()


def test_global_time_asks_for_nothing_before_the_parents_end(place: Path) -> None:
    events = pl.read_csv(place / "new" / "interactions.csv")
    begins = events["user_id"].str.slice(1).cast(pl.Int64, strict=False).fill_null(0) % 5
    events = events.with_columns(timestamp=(events["timestamp"] + begins) * 1000 + 7)
    for name, until in (("first", 7000), ("then", 9000), ("last", 1_000_000)):
        (place / name).mkdir()
        (place / name / "items.jsonl").write_text((place / "new" / "items.jsonl").read_text())
        events.filter(pl.col("timestamp") < until).write_csv(place / name / "interactions.csv")
    run(
        get_recipe("sasrec", [*SMALL, "optimizer.epochs=1"]),
        read_dataset(place / "then"),
        RunOptions(out=place / "by-time", split="global-time"),
        QUIET,
    )
    later = update(place / "by-time", place / "last", place / "in-time")
    assert later.exit_code == 0, later.output
    assert read_manifest(place / "in-time").split.startswith("global-time")
    before = update(place / "by-time", place / "first", place / "too-late")
    assert before.exit_code == 2 and "the parent may have seen what is asked for" in " ".join(before.output.split())
