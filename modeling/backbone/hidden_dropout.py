"""Dropout inside a backbone while it is trained, on every architecture.

Some architectures have a setting for dropout on what their blocks add (BERT, GPT-2, OPT), others have none (Llama,
Qwen, Mistral, Gemma). The first are told their rate; on the others hooks drop what attention and feed-forward add.
That it acts is not taken on trust: `drop_hidden` runs the model twice and looks.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from modeling.backbone.dropout import drop

HIDDEN = ("hidden_dropout_prob", "resid_pdrop", "dropout", "hidden_dropout", "resid_dropout")
ATTENTION = ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout")
OTHER = ("embd_pdrop", "embed_dropout", "activation_dropout")
BLOCKS = ("self_attn", "mlp")
"""Names of the parts whose result is added to the residual stream, where an architecture has no setting."""


class NoDropout(ValueError):
    """A backbone was asked for dropout and has no place for it that is known here."""


def set_dropout(config: Any, *, hidden: float, attention: float = 0.0) -> None:
    """Tell a Hugging Face config all rates it knows; what is not asked for is 0, whatever the checkpoint says."""
    for names, rate in ((HIDDEN, hidden), (ATTENTION, attention), (OTHER, 0.0)):
        for name in names:
            if hasattr(config, name):
                setattr(config, name, rate)


def drop_hidden(model: nn.Module, share: float) -> list[RemovableHandle]:
    """Dropout on what the blocks of ``model`` add, where its architecture has no setting for it.

    Args:
        model: a Hugging Face model whose config went through `set_dropout`, also under an adapter.
        share: dropped in training mode; 0 changes nothing.

    Returns:
        What has to be removed at the end of training.

    Raises:
        NoDropout: two passes in training mode are equal all the same.
    """
    if not share:
        return []
    hooks = hook_blocks(model, share) if not any(hasattr(_config(model), name) for name in HIDDEN) else []
    if not _acts(model):
        for hook in hooks:
            hook.remove()
        raise NoDropout(
            f"backbone.dropout={share} has no effect on {_config(model).model_type!r}: two training passes are equal; "
            "set backbone.dropout=0"
        )
    return hooks


def hook_blocks(model: nn.Module, share: float) -> list[RemovableHandle]:
    """Dropout on what attention and feed-forward of a decoder add, while they are in training mode."""

    def thin(block: nn.Module, given: Any, out: Any) -> Any:
        kept = drop(out[0] if isinstance(out, tuple) else out, share, block.training)
        return (kept, *out[1:]) if isinstance(out, tuple) else kept

    blocks = [part for name, part in model.named_modules() if name.rpartition(".")[2] in BLOCKS]
    return [block.register_forward_hook(thin) for block in blocks]


def _config(model: nn.Module) -> Any:
    return cast(Any, model).config


@torch.no_grad()
def _acts(model: nn.Module) -> bool:
    """Whether two passes in training mode differ; the random state is left as it was."""
    words, modes = cast(Any, model).get_input_embeddings(), {part: part.training for part in model.modules()}
    ids = torch.arange(min(8, words.num_embeddings), device=words.weight.device)[None]
    devices = [ids.device] if ids.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        model.train()
        first, second = (model(inputs_embeds=words(ids), use_cache=False)[0] for _ in range(2))
    for part, mode in modes.items():
        part.training = mode
    return not torch.equal(first, second)
