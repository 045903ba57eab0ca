"""The generator: beam search with a causal language model, free or along the paths of a trie.

A prompt is read once, whatever the number of beams, and a static instruction prefix once for all prompts
(``beams.py``). Nothing is sampled and nothing is taken from a checkpoint's generation settings: the same prompts give
the same answers, alone or in a batch.

The search is that of Hugging Face ``generate(num_beams=W, do_sample=False)``: of the 2 W best continuations those that
end go to the finished list with their score divided by length ** length_penalty, the best W others go on, and a
prompt is done when no running beam can overtake its finished ones.

Where probabilities are divided among the allowed children, a token without an alternative has probability one, so a
text whose rest is determined is finished there and then, and the model is not asked about its rest.

Shape legend: B prompts, W beams, V vocabulary, H width, C children of a trie state, K candidates a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.generation.api import Turn
from modeling.generation.kv_cache import BeamCache, GrowingLayer, new_cache
from modeling.generation.token_inputs import TokenInputs
from modeling.inference.attention import attention
from modeling.inference.layers import DecoderLayers, layers_of
from modeling.inference.prepacked_linear import padded_length

LOW = -1.0e9
"""Score of what may not be chosen: finite, so that differences and quotients of it stay numbers."""


class GenerationError(ValueError):
    """A search was asked for something that cannot be generated."""


class Paths(Protocol):
    """Allowed continuations as plain arrays, as `index.trie.TokenTrie.arrays` gives them.

    State 0 is the start. The children of state s are ``tokens[starts[s] : starts[s] + counts[s]]``, and each leads to
    the state at the same place in ``targets``. Every path ends with an end token.
    """

    @property
    def starts(self) -> NDArray[np.int64]: ...
    @property
    def counts(self) -> NDArray[np.int64]: ...
    @property
    def tokens(self) -> NDArray[np.int64]: ...
    @property
    def targets(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class BeamSettings:
    """How to search.

    Attributes:
        beams: W.
        max_new_tokens: longest text, its end token included.
        length_penalty: exponent of the length by which a score is divided; 0 ranks by the sum of log probabilities.
        early_stopping: True: a prompt is done as soon as W texts have ended; False: when the best running beam, at its
            present length, is behind the worst of them.
        renormalize: divide probabilities among the allowed children of a state. Off by default: a text's score is then
            its probability under the model. On, it is the probability of being reached when only allowed texts exist,
            which is what a model was trained for whose loss knew the trie, and favours prefixes with few continuations
            in one whose loss did not. ``max_new_tokens`` then bounds what the model writes, the rest of a text that is
            determined by it not counted.
    """

    beams: int = 4
    max_new_tokens: int = 48
    length_penalty: float = 1.0
    early_stopping: bool = False
    renormalize: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.beams < 1 or self.max_new_tokens < 1:
            raise GenerationError(
                f"beams is {self.beams} and max_new_tokens {self.max_new_tokens}; both must be 1 or more"
            )


@dataclass(frozen=True)
class Text:
    """One generated text: its tokens without the end token, its score, whether it ended or was cut, and the trie
    state it reached (-1 in a free search)."""

    tokens: tuple[int, ...]
    score: float
    ended: bool
    state: int = -1


@dataclass
class Counts:
    """What a search did: prompt positions read, decoding steps, tokens written (all beams)."""

    prompt_tokens: int = 0
    steps: int = 0
    new_tokens: int = 0


@dataclass(frozen=True)
class Sees:
    """What new tokens may look at.

    Attributes:
        positions_BT: their own positions.
        mask_BXTS: which of the S entries of the cache each may see, [B, 1, T, S], themselves included.
        places_BS: the position of each of these entries.
    """

    positions_BT: Tensor
    mask_BXTS: Tensor
    places_BS: Tensor


OnStep = Callable[[int, list[tuple[int, ...]]], None]


class BeamSearch:
    """Beam search over one causal language model.

    Args:
        body: the model without its head, called with ``input_ids`` or ``inputs_embeds``; a Hugging Face decoder.
        head_VH: the head's weights (the input embeddings where they are tied).
        end_tokens: ids that end a text.
        bias_V: the head's bias, where it has one.
        prefix: token ids that begin every prompt; their keys and values are computed once, here.
        inputs: how tokens become inputs of the model; None: by its token embeddings.
    """

    def __init__(
        self,
        body: nn.Module,
        head_VH: Tensor,
        *,
        end_tokens: Sequence[int],
        bias_V: Tensor | None = None,
        prefix: Sequence[int] = (),
        inputs: TokenInputs | None = None,
    ) -> None:
        self.body = body.eval()
        self.inputs = inputs or TokenInputs()
        self.head_VH, self.bias_V = head_VH, bias_V
        self.device = head_VH.device
        self.end_tokens = torch.tensor(sorted(set(end_tokens)), dtype=torch.long, device=self.device)
        self._config = cast(Any, body).config
        self._layers = int(self._config.num_hidden_layers)
        self._stack = layers_of(self.body)
        self.multiple = 1 if self._stack is None else self._stack.multiple
        self._words = cast(Any, body).get_input_embeddings()
        self.prefix = tuple(prefix)
        self._paths: _PathTensors | None = None
        self._prefix_kv = self._read_prefix()

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
        run = _Run(self, prompts, settings, self._tensors(paths), turn, pass_positions)
        return run.all_steps(on_step, counts or Counts())

    def _tensors(self, paths: Paths | None) -> _PathTensors | None:
        """Of the same arrays, the same: what they hold is worked out once."""
        if paths is not None and (self._paths is None or self._paths.paths is not paths):
            self._paths = _PathTensors(paths, self.device)
        return None if paths is None else self._paths

    @property
    def limit(self) -> int | None:
        """Most positions of prefix, prompt and text; None: any number."""
        found = getattr(self._config, "max_position_embeddings", None) or getattr(self._config, "n_positions", None)
        return cast("int | None", found)

    def logits(self, states_PH: Tensor, tokens_A: Tensor | None = None) -> Tensor:
        """Head over states, [P, V] in fp32; of some tokens only, [P, A], where they are given."""
        if tokens_A is None:
            return nn.functional.linear(states_PH, self.head_VH, self.bias_V).float()
        bias_A = None if self.bias_V is None else self.bias_V[tokens_A]
        return nn.functional.linear(states_PH, self.head_VH[tokens_A], bias_A).float()

    def _check(self, prompts: Sequence[Sequence[int]], settings: BeamSettings) -> None:
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise GenerationError("a prompt is empty: give each at least one token after the prefix")
        longest, limit = len(self.prefix) + max(map(len, prompts)) + settings.max_new_tokens, self.limit
        if limit is not None and longest > limit:
            raise GenerationError(
                f"prompt and answer may take {longest} positions and the model has {limit}: shorten the history, or "
                "lower max_new_tokens"
            )

    @torch.inference_mode()
    def _read_prefix(self) -> list[tuple[Tensor, Tensor]]:
        if not self.prefix:
            return []
        cache = new_cache(self._layers, len(self.prefix))
        ids_1T = torch.tensor([self.prefix], device=self.device)
        self.run_body(ids_1T, cache, features_BT=self.inputs.features(ids_1T))
        return [(layer.keys, layer.values) for layer in cast(list[Any], cache.layers)]

    def begin(
        self, prompts: Sequence[Sequence[int]], turn: Turn, pass_positions: int | None
    ) -> tuple[Sequence[Sequence[int]], list[Any]]:
        """What the texts of these prompts continue, and further layers of their cache that are not written to: here the
        prompts themselves, and none."""
        return prompts, []

    def new_cache(self, rows: int, positions: int) -> Any:
        """A cache that begins with the prefix and has room for ``positions`` more."""
        cache = new_cache(self._layers, len(self.prefix) + positions)
        for layer, (keys, values) in zip(cast(list[GrowingLayer], cache.layers), self._prefix_kv, strict=False):
            layer.preset(keys, values, rows)
        return cache

    def run_body(
        self,
        ids_BT: Tensor,
        cache: Any,
        sees: Sees | None = None,
        wanted_W: Tensor | None = None,
        features_BT: Tensor | None = None,
    ) -> Tensor:
        """States of new tokens, which enter the cache.

        Args:
            ids_BT: the tokens.
            cache: keys and values of what came before.
            sees: what the tokens may look at; None: everything before them.
            wanted_W: places among the B * T tokens whose states are needed; None: all of them.
            features_BT: of the tokens, as ``inputs`` gave them.

        Returns:
            States [B, T, H], or [W, H] where places are given.
        """
        embeds_BTH = self.inputs.vectors(self._words, ids_BT, features_BT)
        if self._stack is not None:
            return self._run_stack(self._stack, embeds_BTH, cache, sees, wanted_W)
        states_BTH = self._run_plain(embeds_BTH, cache, sees)
        return states_BTH if wanted_W is None else states_BTH.flatten(0, 1)[wanted_W]

    def _run_stack(
        self, stack: DecoderLayers, embeds_BTH: Tensor, cache: Any, sees: Sees | None, wanted_W: Tensor | None
    ) -> Tensor:
        """Layer by layer, the last one only for the states that are wanted."""
        rows, length = embeds_BTH.shape[:2]
        begun = int(cache.get_seq_length())
        places_BT = torch.arange(begun, begun + length, device=embeds_BTH.device).expand(rows, -1)
        places_P = (places_BT if sees is None else sees.positions_BT).reshape(-1)
        states_PH = stack.begin(embeds_BTH.flatten(0, 1), places_P)
        turns, last = stack.turns(places_P, states_PH), stack.layers - 1
        for layer in range(stack.layers):
            new = [each.view(rows, length, *each.shape[1:]).transpose(1, 2) for each in
                   stack.keys_values(layer, states_PH, turns)]  # fmt: skip
            keys_BASD, values_BASD = cache.layers[layer].update(*new)
            if layer == last and wanted_W is not None and not len(wanted_W):
                return states_PH[:0]
            queries_PAD = stack.queries(layer, states_PH, turns)
            queries_BATD = queries_PAD.view(rows, length, *queries_PAD.shape[1:]).transpose(1, 2)
            mask = None if sees is None else sees.mask_BXTS
            causal = mask is None and length > 1
            mixed_BATD = attention(queries_BATD, keys_BASD, values_BASD, attn_mask=mask, is_causal=causal)
            mixed_PAD = mixed_BATD.transpose(1, 2).flatten(0, 1)
            if layer == last and wanted_W is not None:
                states_PH, mixed_PAD = states_PH[wanted_W], mixed_PAD[wanted_W]
            states_PH = stack.finish(layer, states_PH, mixed_PAD)
        out_PH = stack.end(states_PH)
        return out_PH if wanted_W is not None else out_PH.view(rows, length, -1)

    def _run_plain(self, embeds_BTH: Tensor, cache: Any, sees: Sees | None) -> Tensor:
        """The body as `transformers` runs it."""
        options: dict[str, Any] = {}
        if sees is not None:
            options = {"position_ids": sees.positions_BT, "attention_mask": self._masks(sees)}
        out = self.body(inputs_embeds=embeds_BTH, past_key_values=cache, use_cache=True, **options)
        return cast(Tensor, out.last_hidden_state)

    def _masks(self, sees: Sees) -> Any:
        """One mask, or one for each kind of layer where some see a window only (Gemma 3)."""
        window, kinds = getattr(self._config, "sliding_window", None), getattr(self._config, "layer_types", None)
        if window is None or (kinds is not None and "sliding_attention" not in kinds):
            return sees.mask_BXTS
        near_BXTS = sees.mask_BXTS & (sees.positions_BT[:, None, :, None] - sees.places_BS[:, None, None] < window)
        if kinds is None:
            return near_BXTS
        return {"full_attention": sees.mask_BXTS, "sliding_attention": near_BXTS}


class _PathTensors:
    """The arrays of a trie on the device."""

    def __init__(self, paths: Paths, device: torch.device) -> None:
        self.paths = paths
        self.starts, self.counts, self.tokens, self.targets = (
            torch.as_tensor(array, device=device) for array in (paths.starts, paths.counts, paths.tokens, paths.targets)
        )
        if not int(self.counts[0]):
            raise GenerationError("the trie holds no text: add an item before searching it")

    def children(self, states_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, next states and validity of the children of states, [P, C] each; C is the largest number of them."""
        counts_P = self.counts[states_P]
        offsets_C = torch.arange(int(counts_P.max()), device=states_P.device)
        valid_PC = offsets_C < counts_P[:, None]
        places_PC = torch.where(valid_PC, self.starts[states_P][:, None] + offsets_C, 0)
        return self.tokens[places_PC], self.targets[places_PC], valid_PC

    @cached_property
    def determined(self) -> Tensor:
        """Whether a text in a state can go on in one way only, or not at all, bool [S]."""
        only = self.counts == 1
        last = torch.where(
            only, self.targets[torch.where(only, self.starts, 0)], torch.arange(len(only)).to(only.device)
        )
        while not torch.equal(further := last[last], last):
            last = further
        return self.counts[last] == 0

    def rest(self, state: int) -> tuple[list[int], int]:
        """The tokens that follow a determined state, and the state after them."""
        tokens: list[int] = []
        while self.paths.counts[state]:
            place = self.paths.starts[state]
            tokens.append(int(self.paths.tokens[place]))
            state = int(self.paths.targets[place])
        return tokens, state


@dataclass
class _Candidates:
    """The K best continuations of every prompt, best first: [B, K]."""

    scores: Tensor
    parents: Tensor
    tokens: Tensor
    states: Tensor


class _Run:
    """One search over one batch of prompts. Rows are dropped from the batch as they are done."""

    def __init__(
        self,
        generator: BeamSearch,
        prompts: Sequence[Sequence[int]],
        settings: BeamSettings,
        paths: _PathTensors | None,
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
        self.finished = [_Finished(beams, settings) for _ in prompts]

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
        """What these positions of the prompts may look at: the prefix and what stands before them."""
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
        """Where a trie has fewer continuations than beams, places that can never be chosen."""
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


class _Finished:
    """The ended texts of one prompt, at most W, best first."""

    def __init__(self, beams: int, settings: BeamSettings) -> None:
        self._beams, self._settings = beams, settings
        self._texts: list[Text] = []

    @property
    def best(self) -> Text | None:
        return self._texts[0] if self._texts else None

    @property
    def full(self) -> bool:
        return len(self._texts) == self._beams

    def add(self, text: Text) -> None:
        self._texts.append(text)
        self._texts.sort(key=lambda each: -each.score)
        del self._texts[self._beams :]

    def can_improve(self, best_running: float) -> bool:
        """Whether a running beam may still enter: not all places are taken, or the worst taken one is behind it."""
        if not self.full:
            return True
        return not self._settings.early_stopping and best_running > self._texts[-1].score

    def texts(self) -> list[Text]:
        return self._texts
