"""`small`: a decoder of fixed shape (Qwen3, 8 layers, 512 wide, 8,192 tokens, 26 M weights), random, for timing only.

    python -m benchmarks.lib.small --data demo|DIR --out artifacts/small [--form compressed|titles] [--seed 0]
        [--shape small|qwen3-0.6b|llama-3.2-1b] [--backbone smollm2 [--layers 8]] [--no-text]

Writes an artifact of recipe `anyo` around it that has learned nothing: what it answers is noise, what it costs is real.
The tokenizer is made of the catalog's titles. With `--backbone` it is written around a pretrained model instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.lib.shapes import SHAPES, config_of
from modeling.artifact.atomic import replaced_folder
from modeling.encoder.build import Sources, build_model
from training.cli_common import open_dataset
from training.data.splits import Split, leave_one_out
from training.export import write_artifact
from training.loop.fit import Fitted, read_text
from training.recipe import with_settings
from training.recipes.anyo import recipe
from training.tiny import byte_level_bpe

VOCABULARY, POSITIONS = 8192, 2048
END, END_TOKEN = 0, "<|end|>"
SETTINGS = ("adapter.kind=none", "items.text_source=minilm")
TIMING_ONLY = {"for": "timing only"}
"""The training record of an artifact whose answers are noise."""
NO_TEXT = ("adapter.kind=none", "items.tower=id", "items.dim=128")


def backbone_config(shape: str = "small") -> Any:
    """The shape, with positions for long histories and the end token of `tokenizer_of`."""
    return config_of(shape, max_position_embeddings=POSITIONS, bos_token_id=END, eos_token_id=END)


def tokenizer_of(titles: Sequence[str]) -> Any:
    """Byte-level BPE over the catalog's titles, as `tokenizers` has it."""
    return byte_level_bpe(titles, VOCABULARY, END_TOKEN)


def write_backbone(folder: Path, titles: Sequence[str], shape: str = "small") -> None:
    """Write a shape and its tokenizer to `folder`, as `transformers` reads them."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    with replaced_folder(folder, "backbone") as work:
        AutoModelForCausalLM.from_config(backbone_config(shape)).save_pretrained(str(work))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(titles), eos_token=END_TOKEN).save_pretrained(str(work))


def write_small(
    split: Split,
    out: Path,
    form: str,
    console: Console,
    seed: int = 0,
    *,
    shape: str = "small",
    settings: Sequence[str] = SETTINGS,
    backbone: str | None = None,
    **options: Any,
) -> None:
    """Write an artifact of `anyo` over a shape that was never trained, or over a named backbone, also untrained;
    `options` are those of `write_artifact`."""
    titles = split.dataset.titles
    sources = Sources()
    if backbone is None:
        folder = out.absolute().parent / ".backbones" / f"{shape}-{split.dataset.sha256[:8]}"
        if not (folder / "config.json").exists():
            write_backbone(folder, titles, shape)
        sources = Sources(backbone=folder)
    untrained = with_settings(recipe(backbone or shape), [*settings, f"history.form={form}"])
    text = read_text(untrained, split, sources, console)
    torch.manual_seed(seed)
    model = build_model(
        untrained.model_spec(),
        catalog_size=split.dataset.n_items,
        titles=titles if form == "titles" else None,
        text=text,
        sources=sources,
    )
    fitted = Fitted(model)
    write_artifact(out, untrained, split, fitted, fitted_on="train", metrics={}, training=TIMING_ONLY, **options)


def main() -> None:
    """Write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo", help="name or folder of a data set")
    parser.add_argument("--out", type=Path, default=Path("artifacts/small"))
    parser.add_argument("--form", choices=("compressed", "titles"), default="compressed")
    parser.add_argument("--seed", type=int, default=0, help="of everything but the backbone")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--backbone", help="a pretrained backbone, as `--backbone` of `train`, instead of a shape")
    parser.add_argument("--layers", type=int, help="the first so many layers of it")
    parser.add_argument("--no-text", action="store_true", help="no title vectors, which minilm makes")
    options = parser.parse_args()
    settings = [*(NO_TEXT if options.no_text else SETTINGS)]
    if options.backbone is not None and not options.no_text:
        settings = ["adapter.kind=none"]  # the backbone reads the titles too
    if options.layers is not None:
        settings.append(f"backbone.layers={options.layers}")
    console = Console(stderr=True)
    split = leave_one_out(open_dataset(options.data, ties="file", seed=0, strict=False, console=console))
    write_small(
        split, options.out, options.form, console, options.seed,
        shape=options.shape, settings=settings, backbone=options.backbone,
    )  # fmt: skip


if __name__ == "__main__":
    main()
