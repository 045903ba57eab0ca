"""Writes an artifact of the title form as what a peer reads: a Hugging Face folder, head, catalog (`peers/model.py`).

Every item becomes a token of the tokenizer, whose embedding is the vector that our history shows of the item. Items
whose text does not become the very tokens of our own prompts are not `usable`, and no history holds them.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from index import Catalog
from modeling.artifact.atomic import replaced_folder
from modeling.backbone.loading import load_tokenizer
from modeling.encoder.prompt import ID
from modeling.methods.dense import Artifact, load_artifact


def export(artifact: Path, target: Path) -> None:
    """Write `artifact` to the folder `target`, unless this version of it is there already; raises SystemExit."""
    loaded = load_artifact(artifact)
    # What an export holds follows from the artifact and from this program: a number raised by hand was forgotten once.
    stamp = {"version": loaded.manifest.version, "program": hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}
    facts_file = target / "facts.json"
    if facts_file.exists() and json.loads(facts_file.read_text()) == stamp:
        return
    spec = loaded.record.model
    if spec.history.form != "titles" or spec.projector.kind != "linear" or spec.history.instruction:
        raise SystemExit(
            f"artifact {artifact.name}: peers read titles as tokens (history.form={spec.history.form!r}) through "
            f"a linear projector (projector.kind={spec.projector.kind!r}), without an instruction; "
            "`python -m benchmarks.lib.small --form titles` writes one"
        )
    catalog = Catalog.read(artifact / "catalog.parquet")
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced_folder(target, "export") as work:
        tokenizer = load_tokenizer(spec.backbone.source, folder=artifact / "backbone")
        item_tokens = _add_items(tokenizer, len(catalog))
        _write_backbone(loaded, tokenizer, item_tokens, work / "backbone")
        _write_head(loaded, work / "head.safetensors")
        _write_catalog(loaded, catalog, tokenizer, item_tokens, work / "catalog.json")
        (work / "facts.json").write_text(json.dumps(stamp))


def _add_items(tokenizer: Any, count: int) -> list[int]:
    """Give every item a token; returns their ids in row order."""
    from tokenizers import AddedToken

    names = [f"<|item_{row}|>" for row in range(count)]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    ids: list[int] = tokenizer.convert_tokens_to_ids(names)
    if len(set(ids)) != count:
        raise SystemExit("the tokenizer did not take a token of its own for every item")
    return ids


@torch.inference_mode()
def _write_backbone(loaded: Artifact, tokenizer: Any, item_tokens: list[int], folder: Path) -> None:
    """The body with the items' input vectors among its token embeddings, and the tokenizer."""
    encoder = loaded.encoder
    body: Any = encoder.backbone
    rows_N = torch.arange(len(item_tokens))
    shown_NH = encoder.slot_vectors(torch.full_like(rows_N, ID), rows_N, None)
    old = body.get_input_embeddings()
    if min(item_tokens) < old.num_embeddings and not _unused(loaded, min(item_tokens)):
        raise SystemExit("the tokens given to items are used by titles")
    new = nn.Embedding(max(old.num_embeddings, max(item_tokens) + 1), old.embedding_dim)
    new.weight[: old.num_embeddings] = old.weight
    new.weight[torch.tensor(item_tokens)] = shown_NH.float()
    body.set_input_embeddings(new)
    body.config.vocab_size = new.num_embeddings
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    body.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _unused(loaded: Artifact, first: int) -> bool:
    titles = loaded.encoder.prompts.titles
    return titles is None or int(titles.tokens.max()) < first


def _write_head(loaded: Artifact, file: Path) -> None:
    """Projector, what the newest items add, and the vectors that are searched."""
    encoder = loaded.encoder
    linear: Any = encoder.projector.map
    tensors = {
        "weight": linear.weight,
        "bias": linear.bias,
        "items": torch.from_numpy(loaded.item_vectors_ND),
    }
    if encoder.projector.newest_weight is not None:
        tensors["recent_weights"] = encoder.projector.newest_weight.reshape(-1)
        tensors["recent"] = encoder.items.table()[: encoder.items.size] * math.sqrt(encoder.items.dim)
    save_file({name: tensor.detach().float().contiguous().clone() for name, tensor in tensors.items()}, file)


def _write_catalog(loaded: Artifact, catalog: Catalog, tokenizer: Any, item_tokens: list[int], file: Path) -> None:
    """Ids, titles, texts and tokens of a prompt's pieces, and which of the texts become their tokens."""
    encoder = loaded.encoder
    titles = encoder.prompts.titles
    assert titles is not None
    tokens = [[*titles[row].tolist(), item_tokens[row]] for row in range(len(catalog))]
    texts, usable = [], []
    for row, title in enumerate(catalog.titles):
        whole = tokenizer(title, add_special_tokens=False)["input_ids"]
        shown = title if whole == tokens[row][:-1] else tokenizer.decode(tokens[row][:-1]).strip()
        texts.append(f"{shown}<|item_{row}|>")
    for row, read in enumerate(tokenizer(texts)["input_ids"]):
        if read == tokens[row]:
            usable.append(row)
    pair = usable[0], usable[-1]
    if tokenizer("".join(texts[row] for row in pair))["input_ids"] != [token for row in pair for token in tokens[row]]:
        raise SystemExit("the text of two items does not become their tokens: peers would read another prompt")
    file.write_text(
        json.dumps(
            {
                "item_ids": list(catalog.item_ids),
                "titles": list(catalog.titles),
                "texts": texts,
                "tokens": tokens,
                "usable": usable,
                "history_limit": encoder.history_limit,
                "normalize": encoder.spec.items.normalize,
            }
        )
    )
