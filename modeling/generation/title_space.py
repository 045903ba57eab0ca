"""The title space of BIGRec: where a language model that was not tuned puts the titles of a catalog.

A title's vector is the base model's last state (after the final norm) at the title's last token, without any prompt;
two titles are as far apart as these vectors by the L2 distance (Bao et al. 2023, second grounding step).

Shape legend: B texts, T tokens, N items, H width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.encoder.prompt import TitleTokens
from modeling.inference.prepacked_linear import multiple_of, padded_length
from modeling.inference.text_forward import TextForward

log = logging.getLogger(__name__)

BATCH = 64


class TitleSpace(nn.Module):
    """A base model's body and the vectors of a catalog's titles in it.

    Args:
        body: causal, without its head and without any adapter.
        vectors_NH: of the catalog; see `of_catalog`.
        begin: token ids before every text, as the tokenizer adds them.
    """

    vectors_NH: Tensor

    def __init__(self, body: nn.Module, vectors_NH: NDArray[np.float32], begin: Sequence[int]) -> None:
        super().__init__()
        self.body = body.eval().requires_grad_(False)
        self._multiple = multiple_of(body)
        self.begin = tuple(begin)
        device = next(body.parameters()).device
        self.register_buffer("vectors_NH", torch.from_numpy(vectors_NH).to(device), persistent=False)

    @classmethod
    def of_catalog(
        cls,
        body: nn.Module,
        tokens: TitleTokens,
        begin: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        progress: Callable[[int], object] = lambda done: None,
    ) -> TitleSpace:
        """Read the titles of a catalog, each beginning of titles once where the body's layers are known.

        Args:
            body, begin: see the class.
            tokens: of the titles.
            dtype: to compute in: fp32 or bf16. The vectors are fp32 in any case, and the body stays what it is.
            progress: called with the number of titles that were read.
        """
        texts = [[*begin, *tokens[row].tolist()] for row in range(len(tokens))]
        fast, reason = TextForward.of(body, texts, dtype)
        if fast is not None:
            return cls(body, fast.read(texts, progress=progress), begin)
        log.info("titles are read by the plain forward in fp32: %s", reason)
        space = cls(body, np.empty((0, int(cast(Any, body).config.hidden_size)), np.float32), begin)
        found = np.empty((len(tokens), space.vectors_NH.shape[1]), np.float32)
        order = np.argsort(np.diff(tokens.offsets), kind="stable")
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            found[rows] = space.embed([tokens[row].tolist() for row in rows]).cpu().numpy()
            progress(len(rows))
        return cls(body, found, begin)

    @torch.inference_mode()
    def embed(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Vectors [B, H] of texts as token ids, none of them empty, in fp32."""
        whole = [[*self.begin, *text] for text in texts]
        last_B = torch.tensor([len(text) - 1 for text in whole])
        longest = padded_length(int(last_B.max()) + 1, len(whole), self._multiple)
        ids_BT = torch.zeros(len(whole), longest, dtype=torch.long)
        for row, text in enumerate(whole):  # padding on the right: with causal attention no text sees it
            ids_BT[row, : len(text)] = torch.as_tensor(text)
        states_BTH = self.body(input_ids=ids_BT.to(self.vectors_NH.device), use_cache=False).last_hidden_state
        return cast(Tensor, states_BTH[torch.arange(len(whole)), last_B].float())

    @torch.inference_mode()
    def distances(self, vectors_BH: Tensor) -> NDArray[np.float32]:
        """L2 distance to every title of the catalog, [B, N]; exactly 0 between equal vectors."""
        exact = "donot_use_mm_for_euclid_dist"  # the faster form loses small distances to rounding
        found: NDArray[np.float32] = torch.cdist(vectors_BH, self.vectors_NH, compute_mode=exact).cpu().numpy()
        return found
