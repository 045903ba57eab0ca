"""Beam search with a causal language model, free or along the paths of a trie.

The parts are in `modeling/generation/search`: the model (`decoder.py`), the steps of one search (`run.py`), the trie
on the device (`trie_tensors.py`) and the ended texts (`finished.py`).

A prompt is read once, whatever the number of beams, and a static instruction prefix once for all prompts
(`modeling/generation/kv_cache.py`). Nothing is sampled and nothing is taken from a checkpoint's generation settings:
the same prompts give the same answers, alone or in a batch.

The search is that of Hugging Face ``generate(num_beams=W, do_sample=False)``: of the 2 W best continuations those that
end go to the finished list with their score divided by length ** length_penalty, the best W others go on, and a
prompt is done when no running beam can overtake its finished ones.

Where probabilities are divided among the allowed children, a token without an alternative has probability one, so a
text whose rest is determined is finished there and then, and the model is not asked about its rest.

Shape legend: B prompts, W beams, V vocabulary, H width, C children of a trie state, K candidates a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from modeling.generation.api import Turn
from modeling.generation.search.decoder import BeamDecoder, Sees
from modeling.generation.search.run import BeamRun
from modeling.generation.search.trie_tensors import Paths, TrieTensors
from modeling.generation.search.types import BeamSettings, Counts, GenerationError, OnStep, Text

__all__ = ["BeamSearch", "BeamSettings", "Counts", "GenerationError", "OnStep", "Paths", "Sees", "Text"]


class BeamSearch(BeamDecoder):
    """Beam search over one causal language model; see `BeamDecoder` for its arguments."""

    _paths: TrieTensors | None = None

    @torch.inference_mode()
    def search(
        self,
        prompts: Sequence[Sequence[int]],
        settings: BeamSettings,
        *,
        paths: Paths | None = None,
        on_step: OnStep | None = None,
        counts: Counts | None = None,
        turn: Turn = nullcontext,
        pass_positions: int | None = None,
    ) -> list[list[Text]]:
        """The best texts for each prompt, at most ``settings.beams`` of them, best first.

        Args:
            prompts: token ids after the prefix; at least one each where there is no prefix.
            settings: how to search.
            paths: the only texts allowed; None: any.
            on_step: called after each step with its number and the best beam so far of every prompt; what it raises
                ends the search.
            counts: filled with what was done.
            turn: held around every pass over the model.
            pass_positions: positions of one pass, padding counted; longer prompts are read in several passes, which
                changes nothing but how long the longest of them is. None: all prompts in one.

        Raises:
            GenerationError: an empty prompt, or more positions than the model has.
        """
        self._check(prompts, settings)
        run = BeamRun(self, prompts, settings, self._tensors(paths), turn, pass_positions)
        return run.all_steps(on_step, counts or Counts())

    def _tensors(self, paths: Paths | None) -> TrieTensors | None:
        """Of the same arrays, the same: what they hold is worked out once."""
        if paths is not None and (self._paths is None or self._paths.paths is not paths):
            self._paths = TrieTensors(paths, self.device)
        return None if paths is None else self._paths

    def _check(self, prompts: Sequence[Sequence[int]], settings: BeamSettings) -> None:
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise GenerationError("a prompt is empty: give each at least one token after the prefix")
        longest, limit = len(self.prefix) + max(map(len, prompts)) + settings.max_new_tokens, self.limit
        if limit is not None and longest > limit:
            raise GenerationError(
                f"prompt and answer may take {longest} positions and the model has {limit}: shorten the history, or "
                "lower max_new_tokens"
            )
