"""What each module behind the transformer computes, and how it follows a student's width."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_folders import SPACE, WIDTH, read_json, write_json, write_modules
from torch.nn import functional

from wid_hf.errors import TeacherError
from wid_hf.sentence_models.files import ModelFiles
from wid_hf.sentence_models.modules import Dense, Normalize, Pooling


@pytest.mark.parametrize("new", [False, True])
def test_modes_are_read_from_both_layouts_in_the_same_order(tmp_path: Path, new: bool) -> None:
    modes = ("cls", "mean", "lasttoken")
    write_modules(tmp_path, modes=modes, new=new)
    pooling = Pooling.read(ModelFiles(str(tmp_path)), "1_Pooling")
    assert pooling.modes == modes
    assert pooling.include_prompt
    states, mask = torch.randn(2, 3, WIDTH), torch.tensor([[1, 1, 1], [1, 1, 0]])
    mean = (states * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    expected = torch.cat([states[:, 0], mean, states[[0, 1], [2, 1]]], dim=1)
    torch.testing.assert_close(pooling(states, mask), expected)
    width = "embedding_dimension" if new else "word_embedding_dimension"
    assert pooling.narrowed(12).config == {**pooling.config, width: 12}


def test_a_pooling_without_a_mode_is_a_mean(tmp_path: Path) -> None:
    write_json(tmp_path / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH})
    assert Pooling.read(ModelFiles(str(tmp_path)), "1_Pooling").modes == ("mean",)


def test_an_unknown_mode_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": ["mean", "median"]})
    with pytest.raises(TeacherError, match=r"pools by 'median'\. Known: cls, max, mean"):
        Pooling.read(ModelFiles(str(tmp_path)), "1_Pooling")


def dense(folder: Path, **given: object) -> Dense:
    write_modules(folder, "Dense", **given)  # type: ignore[arg-type]
    return Dense.read(ModelFiles(str(folder)), "2_Dense")


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("torch.nn.modules.activation.Tanh", torch.tanh),
        ("torch.nn.modules.linear.Identity", torch.Tensor.clone),
        ("torch.nn.modules.activation.GELU", functional.gelu),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_a_dense_layer_is_a_matrix_a_bias_and_an_activation(
    tmp_path: Path, activation: str, function: object, bias: bool
) -> None:
    layer = dense(tmp_path, activation=activation, bias=bias)
    vectors = torch.randn(3, WIDTH)
    product = vectors @ layer.weight.T + (layer.bias if layer.bias is not None else 0)
    assert (layer.bias is not None) == bias
    torch.testing.assert_close(layer(vectors), function(product))  # type: ignore[operator]


def test_without_a_name_the_activation_is_tanh(tmp_path: Path) -> None:
    write_modules(tmp_path, "Dense")
    file = tmp_path / "2_Dense" / "config.json"
    write_json(file, {name: value for name, value in read_json(file).items() if name != "activation_function"})
    assert isinstance(Dense.read(ModelFiles(str(tmp_path)), "2_Dense").activation, torch.nn.Tanh)


@pytest.mark.parametrize("modes", [("mean",), ("cls", "mean")])
def test_a_folded_dense_layer_gives_what_the_teachers_gives_for_states_that_the_map_keeps(
    tmp_path: Path, modes: tuple[str, ...]
) -> None:
    layer = dense(tmp_path, modes=modes)
    turned = torch.linalg.qr(torch.randn(WIDTH, 5)).Q  # (24, 5)
    student = torch.randn(3, len(modes), 5)
    narrow = layer.narrowed(5 * len(modes), turned)
    assert narrow.weight.shape == (SPACE, 5 * len(modes))
    assert narrow.config == {**layer.config, "in_features": 5 * len(modes)}
    torch.testing.assert_close(narrow(student.flatten(1)), layer((student @ turned.T).flatten(1)))


def test_weights_in_a_pickle_are_refused(tmp_path: Path) -> None:
    write_modules(tmp_path, "Dense")
    (tmp_path / "2_Dense" / "model.safetensors").rename(tmp_path / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(TeacherError, match=r"no 2_Dense/model\.safetensors.*pickle.*save it with sentence-tr"):
        Dense.read(ModelFiles(str(tmp_path)), "2_Dense")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    write_modules(tmp_path, "Dense")
    (tmp_path / "2_Dense" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(TeacherError, match="is damaged"):
        Dense.read(ModelFiles(str(tmp_path)), "2_Dense")


@pytest.mark.parametrize(
    "activation", ["their.code.Swish", "torch.nn.functional.gelu", "torch.nn.Missing", "torch.nn.Linear"]
)
def test_an_activation_that_is_no_module_of_torch_is_refused(tmp_path: Path, activation: str) -> None:
    with pytest.raises(TeacherError, match=f"the activation {activation}, which is none of torch.nn"):
        dense(tmp_path, activation=activation)


@pytest.mark.parametrize("kind", [Pooling, Dense])
def test_a_module_whose_file_is_missing_is_refused(tmp_path: Path, kind: type[Pooling] | type[Dense]) -> None:
    with pytest.raises(TeacherError, match=r"has no 1_X/config\.json"):
        kind.read(ModelFiles(str(tmp_path)), "1_X")


@pytest.mark.parametrize("kind", [Dense, Normalize])
def test_a_module_of_tokens_is_refused(tmp_path: Path, kind: type[Dense] | type[Normalize]) -> None:
    write_json(tmp_path / "2_X" / "config.json", {"module_input_name": "token_embeddings"})
    with pytest.raises(TeacherError, match="reads or writes token_embeddings"):
        kind.read(ModelFiles(str(tmp_path)), "2_X")


def test_a_dense_layer_with_a_residual_is_refused(tmp_path: Path) -> None:
    write_modules(tmp_path, "Dense")
    file = tmp_path / "2_Dense" / "config.json"
    write_json(file, read_json(file) | {"use_residual": True})
    with pytest.raises(TeacherError, match="adds its input to its result"):
        Dense.read(ModelFiles(str(tmp_path)), "2_Dense")


def test_normalised_vectors_have_length_one(tmp_path: Path) -> None:
    normalize = Normalize.read(ModelFiles(str(tmp_path)), "2_Normalize")
    vectors = torch.randn(4, 5)
    torch.testing.assert_close(normalize(vectors), vectors / vectors.norm(dim=1, keepdim=True))
