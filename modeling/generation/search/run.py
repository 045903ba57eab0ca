"""One beam search over one batch of prompts, step by step.

Shape legend: B prompts, W beams, V vocabulary, H width, C children of a trie state, K candidates a step, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modeling.generation.api import Turn
from modeling.generation.kv_cache import BeamCache
from modeling.generation.search.decoder import BeamDecoder, Sees
from modeling.generation.search.finished import FinishedTexts
from modeling.generation.search.trie_tensors import TrieTensors
from modeling.generation.search.types import BeamSettings, Counts, OnStep, Text
from modeling.inference.prepacked_linear import padded_length

LOW = -1.0e9
"""Score of what may not be chosen: finite, so that differences and quotients of it stay numbers."""


@dataclass
class _Candidates:
    """The K best continuations of every prompt, best first: [B, K]."""

    scores: Tensor
    parents: Tensor
    tokens: Tensor
    states: Tensor


class BeamRun:
    """One search over one batch of prompts. Rows are dropped from the batch as they are done."""

    def __init__(
        self,
        generator: BeamDecoder,
        prompts: Sequence[Sequence[int]],
        settings: BeamSettings,
        paths: TrieTensors | None,
        turn: Turn = nullcontext,
        pass_positions: int | None = None,
    ) -> None:
        self.generator, self.settings, self.paths = generator, settings, paths
        self.turn, self.pass_positions = turn, pass_positions
        rows, beams, device = len(prompts), settings.beams, generator.device
        self.keep = max(2, 1 + len(generator.end_tokens)) * beams
        self.ends = set(generator.end_tokens.tolist())
        self.positions_read = sum(map(len, prompts))
        self.prompts, self.memory = generator.begin(prompts, turn, pass_positions)
        self.lengths_B = torch.tensor([len(prompt) for prompt in self.prompts], device=device)
        self.number_B = torch.arange(rows, device=device)  # which prompt a row of the batch is
        self.features_B = torch.zeros(rows, dtype=torch.long, device=device)  # of the last tokens of the prompts
        self.tree = BeamCache(rows, beams, device)
        self.scores_BW = torch.full((rows, beams), LOW, device=device)
        self.tokens_BWT = torch.zeros(rows, beams, 0, dtype=torch.long, device=device)
        self.states_BW = torch.zeros(rows, beams, dtype=torch.long, device=device)
        self.finished = [FinishedTexts(beams, settings) for _ in prompts]

    def all_steps(self, on_step: OnStep | None, counts: Counts) -> list[list[Text]]:
        """Prefill, then step until every prompt is done."""
        settings = self.settings
        states_PH = self._prefill()
        counts.prompt_tokens += self.positions_read
        for step in range(1, settings.max_new_tokens + 1):
            candidates = self._candidates(states_PH, first=step == 1)
            alive_B = self._advance(candidates, step)
            counts.steps += 1
            counts.new_tokens += alive_B.numel() * settings.beams
            if on_step is not None:
                on_step(step, self._best_so_far())
            if not bool(alive_B.any()):
                break
            self._drop(alive_B)
            states_PH = self._decode(step)
        return [finished.texts() for finished in self.finished]

    # -- the model ---------------------------------------------------------------------------------------------------

    def _prefill(self) -> Tensor:
        """Read the prompts, padded on the right, and return the states at their last tokens, [B, H]."""
        generator, rows = self.generator, len(self.prompts)
        before, longest = len(generator.prefix), int(self.lengths_B.max())
        padded = padded_length(longest, rows, generator.multiple)
        longest = padded if generator.limit is None or before + padded <= generator.limit else longest
        ids_BT = torch.zeros(rows, longest, dtype=torch.long)
        for row, prompt in enumerate(self.prompts):
            ids_BT[row, : len(prompt)] = torch.as_tensor(prompt)
        written = self.settings.beams * (self.settings.max_new_tokens - 1)
        self.cache = generator.new_cache(rows, longest + written)
        self.cache.layers.extend(self.memory)
        self.places_BS = torch.arange(before + longest, device=generator.device).expand(rows, -1)
        self.prompt_BS = self.places_BS < before + self.lengths_B[:, None]
        ids_BT = ids_BT.to(generator.device)
        features_BT = self._features(ids_BT)
        width = longest
        if self.pass_positions is not None:
            least = padded_length(1, rows, generator.multiple)
            width = max(least, self.pass_positions // rows // least * least)
        states_BH = torch.zeros(rows, generator.head_VH.shape[1], dtype=generator.head_VH.dtype, device=ids_BT.device)
        for start in range(0, longest, width):
            end = min(start + width, longest)
            ending = ((self.lengths_B > start) & (self.lengths_B <= end)).nonzero()[:, 0]
            wanted = ending * (end - start) + self.lengths_B[ending] - 1 - start
            with self.turn():
                sees, these = self._sees_prompt(start, end), None if features_BT is None else features_BT[:, start:end]
                found = generator.run_body(ids_BT[:, start:end], self.cache, sees, wanted, these)
            states_BH[ending] = found.to(states_BH.dtype)
        return states_BH

    def _features(self, ids_BT: Tensor) -> Tensor | None:
        """Features of the prompts' tokens, [B, T]; those of the last ones are kept for what is written."""
        features_BT = self.generator.inputs.features(ids_BT, self.generator.prefix)
        if features_BT is not None:
            self.features_B = features_BT.gather(1, self.lengths_B[:, None] - 1)[:, 0]
        return features_BT

    def _sees_prompt(self, start: int, end: int) -> Sees | None:
        """Mask of these positions of the prompts: they attend to the prefix and all positions before them."""
        before = len(self.generator.prefix)
        if not before and not start:  # the model's own causal mask does, and takes the fast kernel: padding comes last
            return None
        places_BS = self.places_BS[:, : before + end]
        positions_BT = places_BS[:, before + start :]
        return Sees(positions_BT, places_BS[:, None, None] <= positions_BT[:, None, :, None], places_BS)

    def _decode(self, step: int) -> Tensor:
        """Feed the newest token of every beam and return the states [B * W, H]."""
        rows, beams = self.scores_BW.shape
        positions_BW = (len(self.generator.prefix) + self.lengths_B + step - 1)[:, None].expand(-1, beams)
        self.places_BS = torch.cat([self.places_BS, positions_BW], dim=-1)
        prompt_BWS = self.prompt_BS[:, None].expand(-1, beams, -1)
        mask_BXWS = torch.cat([prompt_BWS, self.tree.passed_BWS], dim=-1)[:, None]
        with self.turn():
            states_BWH = self.generator.run_body(
                self.tokens_BWT[..., -1],
                self.cache,
                Sees(positions_BW, mask_BXWS, self.places_BS),
                features_BT=self.generator.inputs.next_features(self.features_B, self.tokens_BWT),
            )
        return states_BWH.reshape(rows * beams, -1)

    # -- the search --------------------------------------------------------------------------------------------------

    def _candidates(self, states_PH: Tensor, *, first: bool) -> _Candidates:
        """The best continuations; at the first step all beams are one."""
        rows = len(self.scores_BW)
        beams = 1 if first else self.settings.beams
        before_BW = self.scores_BW.new_zeros(rows, 1) if first else self.scores_BW
        if self.paths is None:
            logits_PV = self._logits(states_PH)
            scores_PC, tokens_PC = logits_PV.topk(min(self.keep, logits_PV.shape[-1]), dim=-1)
            scores_PC = scores_PC - logits_PV.logsumexp(-1, keepdim=True)
            states_PC = torch.full_like(tokens_PC, -1)
        else:
            tokens_PC, states_PC, valid_PC = self.paths.children(self.states_BW[:, :beams].reshape(-1))
            if self.settings.renormalize:  # what no name has here is not asked for
                wanted_A = torch.unique(tokens_PC)
                found_PA = self._logits(states_PH, wanted_A)
                places_PC = torch.searchsorted(wanted_A, tokens_PC)
            else:
                found_PA, places_PC = self._logits(states_PH), tokens_PC
            raw_PC = found_PA.gather(1, places_PC).masked_fill(~valid_PC, -torch.inf)
            whole = raw_PC if self.settings.renormalize else found_PA
            # A state without children belongs to a beam that only fills its place.
            scores_PC = (raw_PC - whole.logsumexp(-1, keepdim=True)).nan_to_num(nan=LOW, neginf=LOW)
        width = scores_PC.shape[-1]
        total_BX = (scores_PC.view(rows, beams, width) + before_BW[..., None]).view(rows, -1).clamp(min=2 * LOW)
        scores_BK, places_BK = total_BX.topk(min(self.keep, total_BX.shape[-1]), dim=-1)
        tokens_BK, states_BK = (part.view(rows, -1).gather(1, places_BK) for part in (tokens_PC, states_PC))
        return _Candidates(*self._filled(scores_BK, places_BK // width, tokens_BK, states_BK))

    def _logits(self, states_PH: Tensor, tokens_A: Tensor | None = None) -> Tensor:
        with self.turn():
            return self.generator.logits(states_PH, tokens_A)

    def _filled(self, scores: Tensor, *others: Tensor) -> list[Tensor]:
        """Pad continuations to ``self.keep`` columns, with a score so low that the padding is never chosen."""
        missing = self.keep - scores.shape[-1]
        if missing <= 0:
            return [scores, *others]
        pad = nn.functional.pad
        return [pad(scores, (0, missing), value=2 * LOW), *(pad(other, (0, missing)) for other in others)]

    def _advance(self, found: _Candidates, step: int) -> Tensor:
        """Move ended candidates to the finished lists, the best others into the beams; returns who goes on, [B]."""
        settings = self.settings
        ends_BK = torch.isin(found.tokens, self.generator.end_tokens)
        last = step == settings.max_new_tokens
        if self.paths is not None and settings.renormalize:
            forced_BK = self.paths.determined[found.states]
        else:
            forced_BK = torch.zeros_like(ends_BK)
        stops_BK = torch.ones_like(ends_BK) if last else ends_BK | forced_BK
        _, chosen_BW = (found.scores + stops_BK * LOW).topk(settings.beams, dim=-1)
        past_BKT = self.tokens_BWT.gather(1, found.parents[..., None].expand(-1, -1, step - 1))
        texts_BKT = torch.cat([past_BKT, found.tokens[..., None]], dim=-1)
        self._collect(found, texts_BKT, stops_BK, ends_BK, forced_BK)
        if step > 1:
            parents_BW = found.parents.gather(1, chosen_BW)
        else:
            parents_BW = torch.zeros_like(chosen_BW)
        self.tree.step(parents_BW)
        self.scores_BW = (found.scores + stops_BK * LOW).gather(1, chosen_BW)
        self.states_BW = found.states.gather(1, chosen_BW)
        self.tokens_BWT = texts_BKT.gather(1, chosen_BW[..., None].expand(-1, -1, step))
        best_B = (self.scores_BW[:, 0] / step**settings.length_penalty).tolist()
        alive = [
            not last and self.finished[number].can_improve(best) and best > LOW / 2
            for number, best in zip(self.number_B.tolist(), best_B, strict=True)
        ]
        return torch.tensor(alive, device=self.scores_BW.device)

    def _collect(
        self, found: _Candidates, texts_BKT: Tensor, stops_BK: Tensor, ends_BK: Tensor, forced_BK: Tensor
    ) -> None:
        """Only the best W candidates may finish; the others are there to keep W beams running, and finish where their
        rest is determined, since they would run on else."""
        first_K = torch.arange(stops_BK.shape[1], device=stops_BK.device) < self.settings.beams
        may_BK = (stops_BK & first_K | forced_BK) & (found.scores > LOW / 2)
        rows_M, places_M = may_BK.nonzero(as_tuple=True)
        if not len(rows_M):
            return
        parts = (self.number_B, texts_BKT, found.scores, ends_BK, forced_BK, found.states)
        chosen = [self.number_B[rows_M], *(part[rows_M, places_M] for part in parts[1:])]
        # one copy from the device for all of them
        for number, tokens, score, ended, forced, state in zip(*(part.tolist() for part in chosen), strict=True):
            if forced:
                assert self.paths is not None
                rest, state = self.paths.rest(state)
                tokens, ended = tokens + rest, True
            score /= len(tokens) ** self.settings.length_penalty
            if ended and tokens[-1] in self.ends:
                del tokens[-1]
            self.finished[number].add(Text(tuple(tokens), score, ended, state))

    def _drop(self, alive_B: Tensor) -> None:
        """Go on with the rows that are not done: their number decides what every further step costs."""
        if bool(alive_B.all()):
            return
        rows_R = alive_B.nonzero()[:, 0]
        for layer in self.cache.layers:
            layer.keep_rows(rows_R)
        self.tree.keep_rows(rows_R)
        for name in (
            "lengths_B",
            "number_B",
            "features_B",
            "scores_BW",
            "tokens_BWT",
            "states_BW",
            "prompt_BS",
            "places_BS",
        ):
            setattr(self, name, getattr(self, name).index_select(0, rows_R))

    def _best_so_far(self) -> list[tuple[int, ...]]:
        best = [finished.best.tokens if finished.best else () for finished in self.finished]
        running_B = self.scores_BW[:, 0] / self.tokens_BWT.shape[-1] ** self.settings.length_penalty
        parts = (self.number_B, running_B, self.tokens_BWT[:, 0])
        for number, running, tokens in zip(*(part.tolist() for part in parts), strict=True):
            done = self.finished[number].best
            if done is None or running > done.score:
                best[number] = tuple(tokens)
        return best
