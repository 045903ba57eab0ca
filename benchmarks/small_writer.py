"""A server with a dense artifact and a generative model that has learned nothing, for timing the two beside each other.

    python -m benchmarks.small_writer ARTIFACT [--port 0] [--json]

The model is `small` (`benchmarks/small.py`) with random weights, which writes the titles of ARTIFACT's catalog along
their trie: beams, steps, prompts and passes are those of a real one, what it likes is noise. It reads the newest
titles of a history, and fills up with popular items.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from benchmarks.small import END, small_config, tokenizer_of
from index import Catalog
from index.trie import TokenTrie
from modeling.generation import Generated, OnWriting, Turn, Wanted, WritePrompt, WriteSettings, Written
from modeling.generator import BeamSettings, Counts, Generator, Text
from modeling.prompt import FreeItem
from modeling.user_encoder import CannotReadText
from service.cores import model_threads, one_openmp_thread_by_default, set_model_threads
from service.logs import configure_logging
from service.parts import AnyParts, GenerativeParts, WrittenCase, open_parts
from service.server import serve
from service.service import Service
from service.settings import load_settings

NAME, RECIPE = "small-writer", "untrained"
HISTORY, TITLE_TOKENS = 10, 24
PASS_POSITIONS = 48  # about a dense request's
AS_EVALUATED = WriteSettings()


class SmallWriter:
    """The seam of `modeling.generation` over a `Generator` and a trie of titles."""

    reads: tuple[str, ...] = ("ids",)
    history_limit = HISTORY
    default = WriteSettings(4, TITLE_TOKENS + 1)
    limit = WriteSettings(50, 48)

    def __init__(self, catalog: Catalog) -> None:
        from transformers import Qwen3ForCausalLM

        torch.manual_seed(0)
        model = Qwen3ForCausalLM(small_config()).eval()
        self._catalog = catalog
        self._tokenizer = tokenizer_of(catalog.titles)
        encoded = self._tokenizer.encode_batch(list(catalog.titles))
        self._titles = [tuple(each.ids[:TITLE_TOKENS]) or (1,) for each in encoded]
        self._trie = TokenTrie.build(self._titles, END)
        self._generator = Generator(
            model.get_decoder(), model.get_output_embeddings().weight.detach(), end_tokens=[END]
        )

    def read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        raise CannotReadText("this model reads ids only")

    def prepare(self, history: Sequence[int | FreeItem]) -> WritePrompt:
        rows = [row for row in history[-HISTORY:] if isinstance(row, int)]
        return WritePrompt(tuple(token for row in rows for token in (*self._titles[row], END)))

    def write(
        self,
        prompts: Sequence[WritePrompt],
        wanted: Sequence[Wanted],
        settings: WriteSettings = AS_EVALUATED,
        *,
        on_step: OnWriting | None = None,
        turn: Turn = nullcontext,
    ) -> list[Written]:
        beams = settings.beams or self.default.beams
        longest = settings.max_new_tokens or self.default.max_new_tokens
        assert beams and longest
        generator, counts, started = self._generator, Counts(), time.perf_counter()
        first: list[float] = []

        def after(step: int, best: list[tuple[int, ...]]) -> None:
            first.append(time.perf_counter())
            if on_step is not None:
                on_step(step, [self._tokenizer.decode(list(tokens)) for tokens in best])

        search = BeamSettings(beams=beams, max_new_tokens=longest, length_penalty=0.0)
        found = generator.search(
            [prompt.tokens for prompt in prompts], search, paths=self._trie.arrays(), on_step=after, counts=counts,
            turn=turn, pass_positions=PASS_POSITIONS,
        )  # fmt: skip
        seconds = {
            "prefill": first[0] - started,
            "decode": time.perf_counter() - first[0],
            "ground": 0.0,
            "search": 0.0,
        }
        new = counts.new_tokens // len(prompts)
        return [
            self._answer(texts, prompt, want, new, seconds)
            for texts, prompt, want in zip(found, prompts, wanted, strict=True)
        ]

    def _answer(
        self, texts: Sequence[Text], prompt: WritePrompt, wanted: Wanted, new: int, seconds: dict[str, float]
    ) -> Written:
        never = set(wanted.exclude.tolist())
        only = None if wanted.allowed is None else set(wanted.allowed.tolist())
        generated, rows, scores = [], [], []
        for text in texts:
            named = self._trie.items(text.state) if text.ended else []
            title = self._tokenizer.decode(list(text.tokens))
            generated.append(
                Generated(title, text.score, bool(named), named[0] if named else None, 0.0 if named else None)
            )
            for row in named:
                if row not in never and (only is None or row in only) and row not in rows:
                    rows.append(row)
                    scores.append(text.score)
        rows, scores = rows[: wanted.k], scores[: wanted.k]
        taken = never | set(rows)
        spare = (row for row in self._catalog.popular().tolist() if row not in taken and (only is None or row in only))
        filled = [row for row, _ in zip(spare, range(wanted.k - len(rows)), strict=False)]
        scores += [min(scores, default=0.0) - 1 - place for place in range(len(filled))]
        return Written(
            np.array(rows + filled, np.int64), np.array(scores, np.float32), len(filled), tuple(generated),
            prompt.length, new, seconds,
        )  # fmt: skip


def writer_parts(catalog: Catalog) -> GenerativeParts:
    """Parts on a catalog; its golden texts are what it writes now."""
    model = SmallWriter(catalog)
    golden = []
    for start in (0, 5):
        rows = list(range(start, start + 5))
        (written,) = model.write([model.prepare(rows)], [Wanted(10, np.array(rows, np.int64))])
        texts, top = [text.text for text in written.generated], [catalog.item_ids[row] for row in written.rows_K]
        golden.append(WrittenCase([catalog.item_ids[row] for row in rows], texts, top))
    return GenerativeParts(NAME, "0" * 12, RECIPE, model.reads, model, catalog, tuple(golden))


def main() -> None:
    """Serve both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    options = parser.parse_args()
    settings = load_settings(artifacts=(options.artifact, Path(NAME)), port=options.port)
    configure_logging(settings.log_level, settings.log_format)
    one_openmp_thread_by_default()
    set_model_threads(model_threads(settings.threads))
    catalogs: list[Catalog] = []

    def opens(folder: Path, device: str) -> AnyParts:
        if folder.name == NAME:
            return writer_parts(catalogs[0])
        parts = open_parts(folder, device)
        catalogs.append(parts.catalog)
        return parts

    serve(Service(settings, open_parts=opens), lambda url: print(json.dumps({"ready": True, "url": url}), flush=True))


if __name__ == "__main__":
    main()
