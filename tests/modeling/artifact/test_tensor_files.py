"""What is saved is what was given, whatever its memory layout: every array that an artifact holds × every layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from modeling.artifact import tensor_files
from modeling.artifact.tensor_files import TensorFileError, save_arrays, save_pretrained, save_tensors

ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "title vectors": np.arange(35, dtype=np.float32).reshape(7, 5) / 3,
    "mean": np.linspace(-1, 1, 5, dtype=np.float32),
    "map": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32),
    "offsets": np.arange(8, dtype=np.int64),
    "tokens": np.arange(21, dtype=np.int32),
    "codes": np.arange(24, dtype=np.int64).reshape(8, 3),
    "popularity": np.arange(9, dtype=np.int64)[::-1].copy(),
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "flags": np.array([[True, False], [False, True]]),
    "nan": np.array([np.nan, -0.0, np.inf], np.float32),
    "none": np.empty((0, 4), np.float32),
    "scalar": np.array(2.5, np.float32),
    "three": np.arange(24, dtype=np.float64).reshape(2, 3, 4),
}


def _every_second(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array


LAYOUTS: dict[str, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = {
    "rows": np.array,
    "columns": np.asfortranarray,
    "transposed": lambda array: np.array(array.T, order="C").T,
    "strided": _every_second,
    "reversed": lambda array: np.array(array[..., ::-1])[..., ::-1] if array.ndim else array,
    "broadcast": lambda array: np.broadcast_to(array, (2, *array.shape)),
    "other byte order": lambda array: array.astype(array.dtype.newbyteorder()),
    "read only": lambda array: np.broadcast_to(array, array.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_of_any_layout_comes_back(name: str, layout: str, tmp_path: Path) -> None:
    given = LAYOUTS[layout](ARRAYS[name])
    save_arrays({"it": given, "beside": np.ones(3)}, tmp_path / "a.safetensors", metadata={"report": "x"})
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        found = file.get_tensor("it")
        assert file.metadata() == {"report": "x"}
    assert found.shape == given.shape and found.dtype == given.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, given)


TENSORS: dict[str, torch.Tensor] = {
    "weight": torch.arange(12.0).reshape(3, 4),
    "bf16": torch.arange(12.0).reshape(3, 4).to(torch.bfloat16),
    "int8": torch.arange(12, dtype=torch.int8).reshape(3, 4),
    "flags": torch.arange(12).reshape(3, 4) % 2 == 0,
    "none": torch.empty(0, 4),
    "scalar": torch.tensor(0.5),
}
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rows": lambda tensor: tensor.clone(),
    "transposed": lambda tensor: tensor.T.contiguous().T if tensor.ndim == 2 else tensor.clone(),
    "transposed view": lambda tensor: tensor.T if tensor.ndim == 2 else tensor,
    "strided": lambda tensor: tensor.repeat_interleave(2, -1)[..., ::2] if tensor.ndim else tensor,
    "part of a larger storage": lambda tensor: torch.stack([tensor, tensor])[1],
    "expanded": lambda tensor: tensor.expand(2, *tensor.shape),
    "parameter": lambda tensor: nn.Parameter(tensor.clone(), requires_grad=tensor.is_floating_point()),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_of_any_layout_comes_back(name: str, view: str, tmp_path: Path) -> None:
    given = VIEWS[view](TENSORS[name])
    save_tensors({"it": given, "again": given}, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        for key in ("it", "again"):
            found = file.get_tensor(key)
            assert found.dtype == given.dtype and torch.equal(found, given.detach())


def test_what_was_written_otherwise_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that writes memory as it lies: the fault that the comparison is there for."""

    def as_it_lies(arrays: dict[str, Any], path: Path, **_: Any) -> None:
        save_numpy({key: array.T.copy().reshape(array.shape) for key, array in arrays.items()}, path)

    save_numpy, save_torch = tensor_files._save_numpy, tensor_files._save_torch
    monkeypatch.setattr(tensor_files, "_save_numpy", as_it_lies)
    with pytest.raises(TensorFileError, match="'map' read back is not what was written"):
        save_arrays({"map": ARRAYS["map"]}, tmp_path / "a.safetensors")
    monkeypatch.setattr(tensor_files, "_save_torch", lambda tensors, path, **_: save_torch({}, path))
    with pytest.raises(TensorFileError, match="holds \\[\\]"):
        save_tensors({"weight": TENSORS["weight"]}, tmp_path / "b.safetensors")


def test_text_and_objects_are_refused(tmp_path: Path) -> None:
    for array in (np.array(["a"]), np.array([object()])):
        with pytest.raises(Exception, match="numbers and booleans can"):
            save_arrays({"it": array}, tmp_path / "a.safetensors")


def test_a_model_is_read_again_after_it_was_written(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    with torch.no_grad():
        model.wte.weight.data = model.wte.weight.data.T.contiguous().T
    save_pretrained(model, tmp_path / "good")
    loaded = GPT2Model.from_pretrained(tmp_path / "good")
    assert torch.equal(loaded.wte.weight, model.wte.weight)

    class Other(GPT2Model):
        def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
            with torch.no_grad():
                self.wte.weight += 1
            super().save_pretrained(*args, **kwargs)
            with torch.no_grad():
                self.wte.weight -= 1

    with pytest.raises(TensorFileError, match=r"wte\.weight"):
        save_pretrained(Other(model.config), tmp_path / "bad")
