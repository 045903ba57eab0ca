"""A small transformer trained from scratch: the network of the id models.

SASRec (Kang and McAuley 2018) in its pre-normalised form: learned positions counted from the oldest item read,
residual on the un-normalised stream, GELU feed-forward of four times the width; `GatedBlock` is the layer of eSASRec.
Attention is causal, or bidirectional as in BERT4Rec. Under causal attention every valid position comes before the
padding, so that the causal mask alone keeps padding out and no key mask is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.backbone.dropout import drop

MAX_POSITIONS = 1024


@dataclass(frozen=True)
class OwnConfig:
    """The part of a Hugging Face config that readers of a backbone look at."""

    hidden_size: int
    num_hidden_layers: int
    max_position_embeddings: int = MAX_POSITIONS


@dataclass(frozen=True)
class OwnOutput:
    """Same field as a Hugging Face model output."""

    last_hidden_state: Tensor


class Block(nn.Module):
    """Attention and feed-forward, each on the normalised input, each added back."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, hidden_BTH: Tensor, mask_BT: Tensor | None) -> Tensor:
        """[B, T, H] to [B, T, H]; ``mask_BT`` is needed where padding comes first or attention is bidirectional."""
        batch, length, width = hidden_BTH.shape
        qkv = self.query_key_value(self.attention_norm(hidden_BTH))
        query, key, value = qkv.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        allowed = None
        if mask_BT is not None:
            seen = torch.ones(length, length, dtype=torch.bool, device=hidden_BTH.device)
            own = torch.eye(length, dtype=torch.bool, device=hidden_BTH.device)
            allowed = ((seen.tril() if self.causal else seen) & mask_BT.bool()[:, None, :] | own)[:, None]
        is_causal = self.causal and allowed is None
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, is_causal=is_causal)
        mixed_BTH = mixed.transpose(1, 2).reshape(batch, length, width)
        return self.add_feed_forward(self.add_attention(hidden_BTH, mixed_BTH))

    def add_attention(self, hidden_XH: Tensor, mixed_XH: Tensor) -> Tensor:
        """The stream [..., H] with what attention mixed for its positions."""
        return hidden_XH + self._thinned(self.attention_output(mixed_XH))

    def add_feed_forward(self, hidden_XH: Tensor) -> Tensor:
        """The stream [..., H] with what the feed-forward makes of it."""
        inner = self._thinned(F.gelu(self.expand(self.feed_forward_norm(hidden_XH))))
        return hidden_XH + self._thinned(self.contract(inner))

    def _thinned(self, states_XH: Tensor) -> Tensor:
        return drop(states_XH, self.dropout, self.training)


class GatedBlock(Block):
    """LiGR (Borisyuk et al. 2025), the layer of eSASRec (Tikhonovich et al. 2025): what attention and feed-forward add
    passes a gate, the logistic function of a linear map of the stream; the feed-forward is a SwiGLU."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool = True) -> None:
        super().__init__(width, heads, dropout, causal)
        self.expand = nn.Linear(width, 8 * width)
        self.attention_gate = nn.Linear(width, width)
        self.feed_forward_gate = nn.Linear(width, width)

    def add_attention(self, hidden_XH: Tensor, mixed_XH: Tensor) -> Tensor:
        gate_XH: Tensor = self.attention_gate(hidden_XH).sigmoid()
        return hidden_XH + gate_XH * self._thinned(self.attention_output(mixed_XH))

    def add_feed_forward(self, hidden_XH: Tensor) -> Tensor:
        gate, value = self.expand(self.feed_forward_norm(hidden_XH)).chunk(2, -1)
        added = self.contract(self._thinned(F.silu(gate) * value))
        gate_XH: Tensor = self.feed_forward_gate(hidden_XH).sigmoid()
        return hidden_XH + gate_XH * self._thinned(added)


BLOCKS: dict[str, type[Block]] = {"plain": Block, "ligr": GatedBlock}
"""Kinds of layers, `BackboneSpec.block`."""


class NoNetwork(nn.Module):
    """Stands where a backbone would: it has no weights and computes nothing, states have width 0."""

    config = OwnConfig(hidden_size=0, num_hidden_layers=0)


class OwnTransformer(nn.Module):
    """Blocks over given input vectors; called like a Hugging Face model with ``inputs_embeds``."""

    def __init__(
        self, *, width: int, depth: int, heads: int, dropout: float, causal: bool = True, block: str = "plain"
    ) -> None:
        super().__init__()
        self.config = OwnConfig(width, depth)
        self.positions = nn.Embedding(MAX_POSITIONS, width)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.blocks = nn.ModuleList(BLOCKS[block](width, heads, dropout, causal) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = False,
    ) -> OwnOutput:
        """Args: ``inputs_embeds`` [B, T, H]; mask [B, T] and positions [B, T] as `Block` needs them."""
        if position_ids is None:
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
        hidden_BTH = inputs_embeds + self.positions(position_ids)
        for block in self.blocks:
            hidden_BTH = block(hidden_BTH, attention_mask)
        return OwnOutput(self.norm(hidden_BTH))
