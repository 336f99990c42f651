"""Quantising files: llama.cpp's choice of types, ggml's bytes, and errors as they are."""

import tracemalloc

import numpy as np
import pytest

from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.graphlib.quants import dequantize, quantize
from yupana.models.file_types import FILE_TYPES
from yupana.models.formats import GgufFile, write_gguf
from yupana.models.llama import Llama, LlamaConfig, weight_shapes
from yupana.models.llama_gguf import llama_metadata, load_llama, save_llama
from yupana.models.quantize import quantize_model
from yupana.models.quantize_types import Mixture

CONFIG = LlamaConfig(40, n_ctx=16, n_embd=256, n_layer=1, n_head=4, n_head_kv=2, n_ff=352)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "f32.gguf"
    save_llama(path, Llama(CONFIG).init(seed=4))
    return path


def types_of(mixture, layers, part):
    return [mixture.type_of(f"blk.{i}.{part}.weight", (256, 256)) for i in range(layers)]


def counts(file_type, n_layer=32, n_gqa=1, has_output=True):
    """Type by part of a LLaMA's tensors, as (main, attn_v, ffn_down, attn_output, output, embd)."""
    m = Mixture(file_type, n_layer, n_gqa, has_output)

    def short(part):
        found = types_of(m, n_layer, part)
        return {kind: found.count(kind) for kind in sorted(set(found))}

    ends = [m.type_of(f"{name}.weight", (9, 256)) for name in ("output", "token_embd")]
    return short("attn_q"), short("attn_v"), short("ffn_down"), short("attn_output"), *ends


@pytest.mark.parametrize(
    ("file_type", "want"),
    # What llama.cpp's quantize prints for a LLaMA of 32 layers, 7B.
    [
        ("Q4_0", ({"Q4_0": 32}, {"Q4_0": 32}, {"Q4_0": 32}, {"Q4_0": 32}, "Q6_K", "Q4_0")),
        ("Q8_0", ({"Q8_0": 32}, {"Q8_0": 32}, {"Q8_0": 32}, {"Q8_0": 32}, "Q8_0", "Q8_0")),
        ("Q2_K", ({"Q2_K": 32}, {"Q3_K": 32}, {"Q3_K": 32}, {"Q3_K": 32}, "Q6_K", "Q2_K")),
        ("Q3_K_S", ({"Q3_K": 32}, {"Q3_K": 32}, {"Q3_K": 32}, {"Q3_K": 32}, "Q6_K", "Q3_K")),
        ("Q3_K_M", ({"Q3_K": 32}, {"Q4_K": 30, "Q5_K": 2}, {"Q4_K": 30, "Q5_K": 2}, {"Q4_K": 32},
                    "Q6_K", "Q3_K")),
        ("Q3_K_L", ({"Q3_K": 32}, {"Q5_K": 32}, {"Q5_K": 32}, {"Q5_K": 32}, "Q6_K", "Q3_K")),
        ("Q4_K_S", ({"Q4_K": 32}, {"Q4_K": 28, "Q5_K": 4}, {"Q4_K": 28, "Q5_K": 4}, {"Q4_K": 32},
                    "Q6_K", "Q4_K")),
        ("Q4_K_M", ({"Q4_K": 32}, {"Q4_K": 16, "Q6_K": 16}, {"Q4_K": 16, "Q6_K": 16}, {"Q4_K": 32},
                    "Q6_K", "Q4_K")),
        ("Q5_K_M", ({"Q5_K": 32}, {"Q5_K": 16, "Q6_K": 16}, {"Q5_K": 16, "Q6_K": 16}, {"Q5_K": 32},
                    "Q6_K", "Q5_K")),
        ("Q6_K", ({"Q6_K": 32}, {"Q6_K": 32}, {"Q6_K": 32}, {"Q6_K": 32}, "Q6_K", "Q6_K")),
        ("IQ4_NL", ({"IQ4_NL": 32}, {"IQ4_NL": 32}, {"IQ4_NL": 28, "Q5_K": 4}, {"IQ4_NL": 32},
                    "Q6_K", "IQ4_NL")),
        ("IQ4_XS", ({"IQ4_XS": 32}, {"IQ4_XS": 32}, {"IQ4_XS": 28, "Q5_K": 4}, {"IQ4_XS": 32},
                    "Q6_K", "IQ4_XS")),
        ("F16", ({"F16": 32}, {"F16": 32}, {"F16": 32}, {"F16": 32}, "F16", "F16")),
    ],
)  # fmt: skip
def test_mixtures_are_those_of_llama_cpp(file_type, want):
    assert counts(file_type) == want


def test_mixtures_look_at_the_model():
    assert counts("Q2_K", n_gqa=4)[1] == {"Q4_K": 32}
    assert counts("IQ4_XS", n_gqa=4)[1] == {"Q5_K": 32}
    assert counts("Q4_K_M", n_layer=80, n_gqa=8)[1] == {"Q5_K": 40, "Q6_K": 40}  # LLaMA 2 70B
    assert counts("Q4_0", has_output=False)[5] == "Q6_K"  # the embedding is the output
    m = Mixture("Q4_K_M", 24, 1, True)
    assert m.type_of("blk.0.attn_qkv.weight", (768, 256)) == "Q5_K"
    assert m.type_of("position_embd.weight", (64, 256)) is None
    assert m.type_of("blk.0.attn_qkv.bias", (768,)) is None
    assert Mixture("Q4_K_M", 24, 1, True, is_pure=True).type_of("output.weight", (9, 256)) == "Q4_K"


@pytest.mark.parametrize(
    ("file_type", "width", "want"),
    [("Q2_K", 96, "Q4_0"), ("Q3_K_M", 96, "Q4_0"), ("Q4_K_M", 96, "Q5_0"), ("Q5_K_M", 96, "Q5_1"),
     ("Q6_K", 96, "Q8_0"), ("IQ4_XS", 96, "IQ4_NL"), ("Q4_K_M", 40, "F16"), ("Q8_0", 40, "F16")],
)  # fmt: skip
def test_rows_that_are_not_whole_blocks_get_another_type(file_type, width, want):
    assert Mixture(file_type, 4, 1, True).type_of("blk.0.attn_q.weight", (8, width)) == want


# Other types only mix these otherwise.
@pytest.mark.parametrize("file_type", sorted(FILE_TYPES.keys() - {"Q3_K_S", "Q4_K_S", "Q5_K_S"}))
def test_bytes_and_errors_are_those_of_the_definition(tmp_path, model, file_type):
    gguf = pytest.importorskip("gguf")
    reports = quantize_model(model, tmp_path / "q.gguf", file_type)
    mixture = Mixture(file_type, 1, 2, True)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "q.gguf").tensors}
    with GgufFile(model) as before, GgufFile(tmp_path / "q.gguf") as after:
        assert after.metadata["general.file_type"] == FILE_TYPES[file_type]
        assert after.metadata["general.quantization_version"] == 2
        assert after.metadata["llama.block_count"] == 1
        for report in reports:
            values, info = before.tensors[report.name].data, after.tensors[report.name]
            assert info.type == report.after == (mixture.type_of(info.name, info.shape) or "F32")
            read = gguf.quants.dequantize(stored[info.name].data, stored[info.name].tensor_type)
            if info.data.dtype == np.uint8:
                np.testing.assert_array_equal(info.data, quantize(values, info.type))
                np.testing.assert_array_equal(read, dequantize(info.data, info.type))
            errors = values.astype(np.float64) - read
            rms = np.sqrt(np.mean(np.square(values.astype(np.float64))))
            assert report.rmse == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-9, abs=0)
            assert report.max_error == np.abs(errors).max()
            assert report.relative == pytest.approx(report.rmse / rms, rel=1e-9, abs=0)
            assert report.nbytes_after == info.nbytes


def test_what_is_quantised_already_is_refused_unless_asked(tmp_path, model):
    quantize_model(model, tmp_path / "q.gguf", "q8_0")
    with pytest.raises(SettingError, match="quantised already: got Q8_0, want F32"):
        quantize_model(tmp_path / "q.gguf", tmp_path / "r.gguf", "q4_k")
    assert not (tmp_path / "r.gguf").exists()
    quantize_model(tmp_path / "q.gguf", tmp_path / "r.gguf", "f32", allow_requantize=True)
    read, _ = load_llama(tmp_path / "r.gguf")
    with GgufFile(model) as file:
        for name, weight in read.weights.items():
            want = file.tensors[name].data
            if want.ndim == 2:
                kind = "F16" if want.shape[1] % 32 else "Q8_0"
                want = dequantize(quantize(want, "Q8_0"), "Q8_0") if kind == "Q8_0" else want
            np.testing.assert_array_equal(weight.numpy(), want)


def test_values_that_are_not_finite_are_refused(tmp_path):
    shapes = weight_shapes(CONFIG)
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    tensors["blk.0.ffn_up.weight"][3, 5] = np.inf
    write_gguf(tmp_path / "m.gguf", llama_metadata(CONFIG), tensors)
    with pytest.raises(FileFormatError, match=r"tensor blk\.0\.ffn_up\.weight: got .* Q8_0"):
        quantize_model(tmp_path / "m.gguf", tmp_path / "q.gguf", "Q8_0")
    assert not (tmp_path / "q.gguf").exists()


def test_an_unknown_type_is_refused(tmp_path, model):
    with pytest.raises(SettingError, match="no such type: got 'Q9_9', want one of F32, F16, Q4_0"):
        quantize_model(model, tmp_path / "q.gguf", "Q9_9")


def test_memory_does_not_grow_with_the_tensor(tmp_path):
    def peak(rows):
        shapes = {"output.weight": (rows, 4096)}
        tensors = {name: ("F32", s, bytes(4 * s[0] * s[1])) for name, s in shapes.items()}
        write_gguf(tmp_path / "m.gguf", llama_metadata(CONFIG), tensors)
        del tensors
        tracemalloc.start()
        quantize_model(tmp_path / "m.gguf", tmp_path / "q.gguf", "Q8_0")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(3000) < 1.2 * peak(600)  # 49 and 10 MB of tensor


def test_the_source_is_never_the_target(tmp_path, model):
    path = tmp_path / "m.gguf"
    path.write_bytes(model.read_bytes())
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "second").hardlink_to(path)
    for target in (path, tmp_path / "link", tmp_path / "second"):
        with pytest.raises(SettingError, match="as file to read and as file to write, want two"):
            quantize_model(path, target, "Q8_0")
    assert path.read_bytes() == model.read_bytes()
