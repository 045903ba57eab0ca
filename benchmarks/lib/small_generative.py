"""A server with a dense artifact and a generative model that has learned nothing, for timing the two beside each other.

    python -m benchmarks.lib.small_generative ARTIFACT [--port 0] [--json]

The model is `small` (`benchmarks/lib/small.py`) with random weights, which writes the titles of ARTIFACT's catalog
along their trie: beams, steps, prompts and passes are those of a real one, what it likes is noise. It reads the
newest titles of a history, and fills up with popular items.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.lib.small import END, END_TOKEN, backbone_config, tokenizer_of
from index import Catalog
from index.trie import TokenTrie
from modeling.artifact.golden import WrittenCase
from modeling.generation.api import GenerationSettings, ListQuery
from modeling.generation.item_tokenizer import TitleTokenizer
from modeling.methods.trie import TrieGenerator, trie_generator
from service.artifacts.loading import AnyLoaded, LoadedGenerative, open_artifact
from service.engine.cpu import set_library_defaults, set_model_threads, shares
from service.http.server import serve
from service.observability.logs import configure_logging
from service.service import Service
from service.settings import load_settings

NAME, RECIPE = "small-writer", "untrained"
HISTORY, TITLE_TOKENS, BEAMS = 10, 24, 4


def small_writer(catalog: Catalog) -> TrieGenerator:
    """`small` with random weights, over the titles of a catalog."""
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(backbone_config()).eval().requires_grad_(False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(catalog.titles), eos_token=END_TOKEN)
    spelling = TitleTokenizer(tokenizer, TITLE_TOKENS)
    tokens = spelling.spell(catalog.titles, END)
    trie = TokenTrie.build([tokens[row].tolist() for row in range(len(tokens))], END)
    default = GenerationSettings(BEAMS, TITLE_TOKENS + 1)
    return trie_generator(
        model, spelling, tokens, trie, catalog.popular(), end=END, history_limit=HISTORY, default=default
    )


def writer_parts(catalog: Catalog) -> LoadedGenerative:
    """Parts on a catalog; its golden texts are what it writes now."""
    model = small_writer(catalog)
    golden = []
    for start in (0, 5):
        rows = list(range(start, start + 5))
        (written,) = model.write([model.prepare(rows)], [ListQuery(10, np.array(rows, np.int64))])
        golden.append(
            WrittenCase(
                history=[catalog.item_ids[row] for row in rows],
                texts=[text.text for text in written.generated],
                top=[catalog.item_ids[row] for row in written.rows_K],
            )
        )
    return LoadedGenerative(
        name=NAME, version="0" * 12, recipe=RECIPE, reads=model.reads, model=model, catalog=catalog,
        golden=tuple(golden),
    )  # fmt: skip


def main() -> None:
    """Serve both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    options = parser.parse_args()
    settings = load_settings(artifacts=(options.artifact, Path(NAME)), port=options.port)
    configure_logging(settings.log_level, settings.log_format)
    set_library_defaults()
    set_model_threads(shares(settings.lanes, settings.threads).threads)
    catalogs: list[Catalog] = []

    def opens(folder: Path, device: str) -> AnyLoaded:
        if folder.name == NAME:
            return writer_parts(catalogs[0])
        parts = open_artifact(folder, device)
        catalogs.append(parts.catalog)
        return parts

    serve(
        Service(settings, open_artifact=opens), lambda url: print(json.dumps({"ready": True, "url": url}), flush=True)
    )


if __name__ == "__main__":
    main()
