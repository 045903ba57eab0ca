"""Changes to language models, their tokenizers and adapters, some of which would run code."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testing.hostile.changes import KINDS, MARKER, Unfit, kind, pick, raw_manifest, seal
from testing.hostile.tensors import tensors


def settings_of(name: str, file: str, change: Callable[[Any], Any], *, code: bool = False) -> None:
    def apply(folder: Path, rng: random.Random) -> None:
        path = pick(folder, rng, file)
        if code:
            marker = folder.parent / MARKER
            path.with_name("evil.py").write_text(f"open({str(marker)!r}, 'w').write('ran')\n")
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))
        seal(folder)

    KINDS[name] = apply


def setting(**values: Any) -> Callable[[Any], Any]:
    return lambda value: value.update(values)


CODE = {
    "AutoModel": "evil.M",
    "AutoConfig": "evil.C",
    "AutoModelForCausalLM": "evil.M",
    "AutoTokenizer": ["evil.T", None],
}
settings_of("code-config", "config.json", setting(auto_map=CODE), code=True)
settings_of("code-tokenizer", "tokenizer_config.json", setting(auto_map=CODE, tokenizer_class="evil.T"), code=True)
settings_of("code-type", "config.json", setting(model_type="evilmodel", auto_map=CODE), code=True)
settings_of(
    "code-adapter",
    "adapter_config.json",
    setting(auto_mapping={"base_model_class": "M", "parent_library": "evil"}),
    code=True,
)
CONFIGS: tuple[dict[str, Any], ...] = (
    {"attn_implementation": "evil-org/evil-kernel"}, {"quantization_config": {"quant_method": "bitsandbytes"}},
    {"vocab_size": 2**31, "hidden_size": 65_536}, {"num_hidden_layers": 10**6}, {"num_hidden_layers": 0},
    {"num_attention_heads": 10**6}, {"num_attention_heads": 0}, {"num_key_value_heads": 7}, {"head_dim": 10**6},
    {"intermediate_size": 2**40}, {"max_position_embeddings": 2**40}, {"hidden_act": "evil"}, {"dtype": "float64"},
    {"torch_dtype": "evil"}, {"rope_theta": 0}, {"rope_scaling": {"rope_type": "linear", "factor": 0}},
    {"rope_scaling": {"rope_type": "evil"}}, {"rms_norm_eps": 1e308},
    {"sliding_window": -1, "use_sliding_window": True},
    {"model_type": "bert"}, {"architectures": ["Evil"]}, {"layer_types": ["x"] * 100_000}, {"pad_token_id": 10**9},
    {"tie_word_embeddings": None}, {"is_encoder_decoder": True}, {"pruned_heads": {"0": list(range(100_000))}},
)  # fmt: skip
for number, values in enumerate(CONFIGS):
    settings_of(f"config-{number}", "config.json", setting(**values))
REGEX = {"type": "Split", "pattern": {"Regex": "(a|a|aa)+$"}, "behavior": "Isolated", "invert": False}
settings_of("tokenizer-regex", "tokenizer.json", setting(pre_tokenizer=REGEX))
settings_of(
    "tokenizer-growth",
    "tokenizer.json",
    setting(
        normalizer={
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10_000}] * 3,
        }
    ),
)
settings_of(
    "tokenizer-tokens",
    "tokenizer.json",
    setting(
        added_tokens=[
            {
                "id": 10**6 + n,
                "content": f"<{n}>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for n in range(50_000)
        ]
    ),
)
settings_of("tokenizer-class", "tokenizer_config.json", setting(tokenizer_class="LlamaTokenizer", legacy=True))
settings_of("tokenizer-file", "tokenizer_config.json", setting(tokenizer_file="/etc/passwd", vocab_file="/etc/passwd"))


@kind
def weights_pickled(folder: Path, rng: random.Random) -> None:
    """Weights as a program: reading it would run a command."""
    path = pick(folder, rng, "adapter_model.safetensors", "model.safetensors")
    suffix = {"adapter_model.safetensors": "adapter_model.bin"}.get(path.name, "pytorch_model.bin")
    path.unlink()
    command = f"touch {folder.parent / MARKER}"
    path.with_name(suffix).write_bytes(f"cos\nsystem\n(S'{command}'\ntR.".encode())
    seal(folder)


@kind
def weights_index(folder: Path, rng: random.Random) -> None:
    path = pick(folder, rng, "model.safetensors")
    places = rng.choice(
        ("../../../etc/passwd", "/dev/zero", "no.safetensors", "config.json", 7, ["x"], "a/model.safetensors")
    )
    index = {"metadata": {"total_size": 2**60}, "weight_map": dict.fromkeys(tensors(path)[0], places)}
    path.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    seal(folder)


@kind
def backbone_gone(folder: Path, rng: random.Random) -> None:
    if not (folder / "backbone").is_dir():
        raise Unfit("backbone")
    shutil.rmtree(folder / "backbone")
    value = raw_manifest(folder)
    if isinstance(value.get("backbone"), dict):
        value["backbone"] |= {
            "stored": False,
            "source": rng.choice(("attacker-org/weights", "/etc", "../..", "http://localhost/x")),
        }
    seal(folder, value)
