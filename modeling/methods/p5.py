"""The model of P5: generates items along the trie of their identifiers, and scores answers of other tasks.

A history is encoded as the sequential prompt that the model was selected with on validation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from index.trie import TokenTrie
from modeling.artifact.part_names import Part
from modeling.encoder.prompt import FreeItem
from modeling.generation.api import GenerationPrompt, GenerationSettings
from modeling.generation.base import ItemIdentifiers
from modeling.generation.beam_search import Paths
from modeling.generation.whole_word_embedding import WholeWordEmbedding, WholeWordInputs, read
from modeling.methods.base import LoadContext
from modeling.methods.base_generative import GenerativeMethod, trie_of
from modeling.methods.p5_files import P5Record, Tasks, read_tasks, write_tasks
from modeling.methods.p5_prompts import SERVED, Family, Language, TaskText, Template
from modeling.methods.trie import TrieGenerator, trie_paths


class P5Generator(TrieGenerator):
    """A `TrieGenerator` whose histories are prompts.

    Args:
        model, names, paths, items, end, history_limit, default: see `TrieGenerator`.
        whole_words: whole-word embedding; None for a model without one.
        language: encodes prompts as tokens.
        families: task families the model was trained on.
    """

    def __init__(
        self,
        model: nn.Module,
        names: ItemIdentifiers,
        *,
        paths: Paths,
        items: Callable[[int], list[int]],
        end: int,
        history_limit: int,
        default: GenerationSettings,
        whole_words: WholeWordEmbedding | None,
        language: Language,
        families: Sequence[Family],
        trie: TokenTrie | None = None,
    ) -> None:
        super().__init__(
            model, names, paths=paths, items=items, end=end, history_limit=history_limit, default=default,
            inputs=None if whole_words is None else WholeWordInputs(whole_words), trie=trie,
        )  # fmt: skip
        self._closes, self.whole_words = end, whole_words
        self.names_are_assigned = True  # even where they are words
        self.language, self.families = language, tuple(families)
        self.template = SERVED

    @property
    def networks(self) -> dict[Part, nn.Module]:
        """The model, and the whole-word embedding."""
        words = {} if self.whole_words is None else {Part.WHOLE_WORDS: self.whole_words}
        return {**super().networks, **words}

    def worded(self, template: Template) -> P5Generator:
        """A copy that uses another sequential prompt."""
        other = copy.copy(self)
        other.template = template
        return other

    def prepare(self, history: Sequence[int | FreeItem], user_id: str | None = None) -> GenerationPrompt:
        """The sequential prompt over the newest items, oldest first; for an empty history, the template's words."""
        names = [self.name(item) for item in history[-self.history_limit :]]
        said = [token for part in self.language.history(names) for token in part]
        return GenerationPrompt(tuple(self.language.ask(self.template, {"history": said})))

    @torch.inference_mode()
    def next_logs(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Log probabilities [B, V] of the token after each prompt."""
        texts = [TaskText((*prompt, self._closes), ((len(prompt), len(prompt) + 1),)) for prompt in prompts]
        logits_BTV, _ = self._logits(texts)
        last_B = torch.tensor([len(prompt) for prompt in prompts], device=logits_BTV.device)
        return logits_BTV[torch.arange(len(prompts)), last_B].log_softmax(-1).cpu()

    @torch.inference_mode()
    def answer_losses(self, texts: Sequence[TaskText]) -> NDArray[np.float64]:
        """Mean negative log probability of the tokens of each text's last answer, its end included, [B]."""
        logits_BTV, ids_BT = self._logits(texts)
        logs_BTV = logits_BTV.log_softmax(-1)
        losses = []
        for row, text in enumerate(texts):
            start, stop = text.answers[-1]
            wanted = ids_BT[row, start + 1 : stop + 1]
            losses.append(-float(logs_BTV[row, start:stop].gather(-1, wanted[:, None]).mean()))
        return np.array(losses)

    def _logits(self, texts: Sequence[TaskText]) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] at every token of texts that begin with the end token, and their ids, [B, T]."""
        longest = 1 + max(len(text.tokens) for text in texts)
        ids_BT = torch.full((len(texts), longest), self._closes, dtype=torch.long)
        for row, text in enumerate(texts):
            ids_BT[row, 1 : 1 + len(text.tokens)] = torch.tensor(text.tokens)
        model = cast(Any, self.model)
        head = model.get_output_embeddings()
        ids_BT = ids_BT.to(head.weight.device)
        states_BTH = model.get_decoder()(
            inputs_embeds=read(model, ids_BT, self.whole_words), use_cache=False
        ).last_hidden_state
        return head(states_BTH).float(), ids_BT


def p5_generator(
    model: nn.Module,
    names: ItemIdentifiers,
    trie: TokenTrie,
    tasks: Tasks,
    *,
    end: int,
    history_limit: int,
    default: GenerationSettings,
) -> P5Generator:
    """A generator along the trie of a catalog's names, whose histories are prompts."""
    return P5Generator(
        model, names, end=end, history_limit=history_limit, default=default, **trie_paths(names, trie), **vars(tasks)
    )


class P5(GenerativeMethod[P5Record]):
    """Stores and loads a `P5Generator`."""

    kind, Record = "p5", P5Record

    def save_parts(self, folder: Path, model: P5Generator) -> dict[str, Any]:
        """See `GenerativeMethod.save_parts`: the word tokenizer and the whole-word embedding."""
        return write_tasks(folder, Tasks(model.language, model.families, model.whole_words))

    def generator(
        self, record: P5Record, context: LoadContext, network: nn.Module, names: ItemIdentifiers, base: nn.Module | None
    ) -> P5Generator:
        """See `GenerativeMethod.generator`; the trie is built from the item tokens."""
        tasks = read_tasks(context.files, record, network)
        return p5_generator(
            network, names, trie_of(names.tokens, record.end), tasks, end=tasks.language.end,
            history_limit=record.history_limit, default=record.default,
        )  # fmt: skip


METHOD = P5()
