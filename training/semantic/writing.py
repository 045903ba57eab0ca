"""Short texts about histories, written once by a local language model and kept on disk.

A text is kept under a hash of all that decides it: the weights, the tokens that the model reads and the number of
tokens that it may write. Texts are appended batch by batch, so that a run that was ended goes on where it stopped.

Shape legend: B prompts, T tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from modeling.backbone.loading import BackboneError, TextTokenizer, load_tokenizer, position_limit
from modeling.backbone.with_head import load_with_head
from modeling.spec import BackboneSpec
from modeling.text import plain_text
from training.objectives.views import TITLES, ViewsSpec

LAYOUT = 1
"""Part of what texts are kept under; to be raised when they are written otherwise."""
BATCH = 16
TITLE = 20
"""Tokens of a title that are shown."""
NO_REPEAT = 3
"""No run of so many tokens is written twice: small models repeat themselves."""
BETWEEN = ";"

Progress = Callable[[int], object]


class Writer:
    """A frozen decoder that continues prompts, greedily.

    Args:
        spec: which model, and what it writes.
        download: whether a hub may be asked for it.

    Raises:
        BackboneError: it is not found, or cannot write.
    """

    def __init__(self, spec: ViewsSpec, *, download: bool = False) -> None:
        self._spec = spec
        backbone = BackboneSpec(source=spec.writer, dropout=0.0)
        try:
            self._model: Any = load_with_head(backbone, download=download).requires_grad_(False)
        except BackboneError as error:
            raise BackboneError(
                f"method.views needs a language model on this machine that can write, and method.views.writer="
                f"{spec.writer!r} cannot: {error}"
            ) from error
        self._tokenizer: Any = load_tokenizer(spec.writer, download=download)
        self._pieces = TextTokenizer(self._tokenizer)
        self._room = position_limit(self._model) - spec.tokens
        self._weights = _sha256(self._model)

    def prompts(self, histories: Sequence[Sequence[str]]) -> list[list[int]]:
        """Tokens of the prompt about each list of titles, oldest first; the oldest titles go where there is no room.

        Titles are data: a title that spells a control token is read as text.

        Raises:
            BackboneError: the model reads fewer tokens than the words around the titles and one title take.
        """
        before, after = self._spec.prompt.split(TITLES)
        start, between, ask = self._pieces.fixed([before.rstrip(" "), BETWEEN, after])
        start = [*self._pieces.wrap[0], *start]
        least = len(start) + len(ask) + TITLE + len(between)
        if self._room < least:
            raise BackboneError(
                f"method.views.writer={self._spec.writer!r} reads {self._room} tokens beside the "
                f"{self._spec.tokens} that it writes (method.views.tokens), and {least} are needed"
            )
        made = []
        for titles in histories:
            shown: list[int] = []
            for tokens in reversed([ids[:TITLE] for ids in self._pieces(list(titles))]):
                piece = [*tokens, *between] if shown else tokens
                if len(start) + len(piece) + len(shown) + len(ask) > self._room:
                    break
                shown = [*piece, *shown]
            made.append([*start, *shown, *ask])
        return made

    def key(self, prompt: Sequence[int]) -> str:
        """Hash of all that decides the text behind a prompt."""
        decides = [LAYOUT, self._weights, self._spec.tokens, NO_REPEAT, list(prompt)]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()

    @torch.inference_mode()
    def write(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Texts generated after each prompt, up to the end of the line."""
        width = max(map(len, prompts))
        tokens_BT, mask_BT = (torch.zeros(len(prompts), width, dtype=torch.long) for _ in range(2))
        for row, prompt in enumerate(prompts):
            tokens_BT[row, width - len(prompt) :] = torch.as_tensor(prompt)
            mask_BT[row, width - len(prompt) :] = 1
        end = self._pieces.ends[1]
        written_BT: Tensor = self._model.generate(
            input_ids=tokens_BT, attention_mask=mask_BT, max_new_tokens=self._spec.tokens, do_sample=False,
            no_repeat_ngram_size=NO_REPEAT, use_cache=True, pad_token_id=end[0] if end else 0,
        )  # fmt: skip
        texts = self._tokenizer.batch_decode(written_BT[:, width:], skip_special_tokens=True)
        return [plain_text(text.strip().partition("\n")[0]) for text in texts]


def write_or_reuse(
    writer: Writer, histories: Sequence[Sequence[str]], folder: Path | None, *, progress: Progress
) -> list[str]:
    """A text about each list of titles: those that an earlier run left in ``folder``, else written now and left there.

    Args:
        writer: of the texts.
        histories: titles, oldest first.
        folder: None: they are not kept.
        progress: is told of texts that are there.
    """
    prompts = writer.prompts(histories)
    keys = [writer.key(prompt) for prompt in prompts]
    file = None if folder is None else folder / "written.jsonl"
    wanted = set(keys)
    texts = {} if file is None else {key: text for key, text in _kept(file) if key in wanted}
    counts = Counter(keys)
    progress(sum(counts[key] for key in texts))
    missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in texts}
    order = sorted(missing, key=lambda key: len(missing[key]))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        written = dict(zip(batch, writer.write([missing[key] for key in batch]), strict=True))
        texts |= written
        if file is not None:
            _append(file, written)
        progress(sum(counts[key] for key in batch))
    return [texts[key] for key in keys]


def _kept(file: Path) -> Iterator[tuple[str, str]]:
    """Keys and texts of a file; a line that was cut off, by a crash say, is passed over."""
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            yield str(entry["key"]), str(entry["text"])
        except (ValueError, KeyError, TypeError):
            continue


def _append(file: Path, written: dict[str, str]) -> None:
    """In one write, on lines of its own whatever the file ends with."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"key": key, "text": text}) + "\n" for key, text in written.items())
    with file.open("a", encoding="utf-8") as stream:
        stream.write("\n" + lines if stream.tell() else lines)


def _sha256(model: nn.Module) -> str:
    """Of the weights in memory, with their names."""
    digest = hashlib.sha256()
    for name, weight in cast(dict[str, Tensor], model.state_dict()).items():
        digest.update(name.encode())
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()
