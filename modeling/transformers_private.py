"""Private functions of transformers that anyo uses; pyproject.toml bounds its version for it.

The trainer's hooks, which a subclass overrides, are in `training.loop.trainer`.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor


def name_config(config: Any, name: str) -> None:
    """Set the name that a configuration shows, which would otherwise be a path of this machine."""
    config._name_or_path = name


def relative_position_buckets(attention: Any, distances_TS: Tensor) -> Tensor:
    """Buckets [T, S] of the decoder's relative positions in a T5 self-attention (Raffel et al. 2020, section 2.1)."""
    found = attention._relative_position_bucket(
        distances_TS,
        bidirectional=False,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    return cast(Tensor, found)
