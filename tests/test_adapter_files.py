"""Adapters written, read and merged: GGUF, ggla, PEFT folders."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import yupana as yp
from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.adapter_files import load_adapter
from yupana.models.adapter_peft import save_peft
from yupana.models.adapter_save import save_adapter, save_ggla
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import save_llama
from yupana.models.loading import load_model
from yupana.models.lora import Adapter
from yupana.models.merge import merge_adapters

SIZES = LlamaConfig(n_vocab=40, n_ctx=16, n_embd=64, n_layer=2, n_head=4, n_head_kv=2, n_mult=32)
DATA = Path(__file__).parents[2] / "shared" / "data"


def make_adapter(*, norms=False, dora=False, alpha: float | None = 6.0, seed=0):
    """Pairs of two ranks beside every weight of a model of SIZES."""
    random = np.random.default_rng(seed)

    def draw(*shape):
        return random.standard_normal(shape).astype(np.float32) * np.float32(0.3)

    pairs, magnitudes = {}, {}
    for name, weight in Llama(SIZES, yp.Context(no_alloc=True)).weights.items():
        if weight.ndim == 2:
            if dora and name == "token_embd.weight":
                continue  # see test_lengths_and_a_pair_of_the_embedding_do_not_go_together
            rank = 2 if "ffn" in name else 3
            pairs[name] = draw(rank, weight.shape[1]), draw(weight.shape[0], rank)
            if dora:
                magnitudes[name] = np.abs(draw(weight.shape[0])) + 1
        elif norms:
            pairs[name] = draw(1, weight.shape[0]), draw(1, 1)
    return Adapter("made", pairs, alpha, magnitudes=magnitudes)


def scaled(adapter):
    """Weight to what is added to it, whatever form alpha has in a file."""
    return {n: adapter.sums(n, np.zeros((len(b), a.shape[1]), "f4")) for n, (a, b) in
            adapter.pairs.items()}  # fmt: skip


def assert_same(one, other):
    left, right = scaled(one), scaled(other)
    assert left.keys() == right.keys()
    for name, values in left.items():
        np.testing.assert_allclose(right[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    assert one.magnitudes.keys() == other.magnitudes.keys()
    for name, values in one.magnitudes.items():
        np.testing.assert_array_equal(other.magnitudes[name], values)


@pytest.mark.parametrize("alpha", [None, 6.0, 2.5])
@pytest.mark.parametrize("norms", [False, True])
def test_gguf_and_ggla_are_read_as_written(tmp_path, alpha, norms):
    adapter = make_adapter(norms=norms, alpha=alpha)
    save_adapter(tmp_path / "a.gguf", adapter)
    assert_same(adapter, load_adapter(tmp_path / "a.gguf"))
    save_ggla(tmp_path / "a.bin", adapter)
    assert_same(adapter, load_adapter(tmp_path / "a.bin"))


@pytest.mark.parametrize("dora", [False, True])
def test_peft_folders_are_read_as_written(tmp_path, dora):
    adapter = make_adapter(dora=dora)
    save_peft(tmp_path / "a", adapter, SIZES, base="some/model")
    tensors = tmp_path / "a" / "adapter_model.safetensors"
    copy = {"base_model.model.lm_head.base_layer.weight": np.zeros((40, 64), np.float32)}
    save_file(load_file(tensors) | copy, tensors)  # as PEFT itself does
    assert_same(adapter, load_adapter(tmp_path / "a", SIZES))
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["use_dora"] is dora
    assert config["r"] == 3
    assert set(config["rank_pattern"].values()) == {2}


def test_rows_of_queries_have_hugging_faces_order_in_peft(tmp_path):
    adapter = make_adapter()
    save_peft(tmp_path / "a", adapter, SIZES)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    for part, name, heads in (("q", "attn_q", 4), ("k", "attn_k", 2)):
        theirs = tensors[f"base_model.model.model.layers.1.self_attn.{part}_proj.lora_B.weight"]
        ours = adapter.pairs[f"blk.1.{name}.weight"][1]
        for head in range(heads):
            first = head * SIZES.head_width
            for pair in range(SIZES.head_width // 2):
                np.testing.assert_array_equal(theirs[first + pair], ours[first + 2 * pair])
                half = first + pair + SIZES.head_width // 2
                np.testing.assert_array_equal(theirs[half], ours[first + 2 * pair + 1])


def test_rslora_and_patterns_of_peft_are_understood(tmp_path):
    folder = tmp_path / "a"
    adapter = make_adapter(alpha=None)
    save_peft(folder, adapter, SIZES)
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"use_rslora": True, "lora_alpha": 4, "alpha_pattern": {"q_proj": 8}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    read = scaled(load_adapter(folder, SIZES))
    for name, values in scaled(adapter).items():
        factor = (8 if "attn_q" in name else 4) / np.sqrt(adapter.rank_of(name))
        np.testing.assert_allclose(read[name], values * factor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type: got 'IA3'"),
        ({"bias": "all"}, "bias: got 'all'"),
        ({"r": 0}, "r: got 0"),
        ({"lora_alpha": "x"}, "lora_alpha: got 'x'"),
    ],
)
def test_folders_of_other_kinds_are_refused(tmp_path, change, words):
    save_peft(tmp_path / "a", make_adapter(), SIZES)
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FileFormatError) as error:
        load_adapter(tmp_path / "a", SIZES)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("base_model.model.lm_head.weight", "modules_to_save"),
        ("base_model.model.model.layers.0.mlp.other.lora_A.weight", "those of a Llama"),
        ("base_model.model.model.layers.5.mlp.up_proj.lora_A.weight", "lora_B as well"),
    ],
)
def test_tensors_that_fit_nowhere_are_named(tmp_path, name, words):
    save_peft(tmp_path / "a", make_adapter(), SIZES)
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file(load_file(path) | {name: np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(FileFormatError) as error:
        load_adapter(tmp_path / "a", SIZES)
    assert words in str(error.value)


def test_lengths_and_a_pair_of_the_embedding_do_not_go_together(tmp_path):
    """PEFT has lengths of columns there, and takes those of W where the file has none."""
    adapter, more = make_adapter(dora=True), make_adapter().pairs
    pairs = {**adapter.pairs, "token_embd.weight": more["token_embd.weight"]}
    both = Adapter("both", pairs, 6.0, magnitudes=adapter.magnitudes)
    with pytest.raises(SettingError, match="PEFT would scale the columns"):
        save_peft(tmp_path / "a", both, SIZES)
    save_peft(tmp_path / "a", Adapter("pairs", pairs, 6.0), SIZES)
    path = tmp_path / "a" / "adapter_model.safetensors"
    columns = {"base_model.model.model.embed_tokens.lora_magnitude_vector": np.ones(64, "f4")}
    save_file(load_file(path) | columns, path)
    with pytest.raises(FileFormatError, match="got lengths of columns"):
        load_adapter(tmp_path / "a", SIZES)


def test_what_a_format_has_no_place_for_is_refused(tmp_path):
    with pytest.raises(SettingError, match="PEFT folder, or merge"):
        save_adapter(tmp_path / "a.gguf", make_adapter(dora=True))
    with pytest.raises(SettingError, match="no pairs of norms"):
        save_peft(tmp_path / "a", make_adapter(norms=True), SIZES)
    with pytest.raises(SettingError, match="want `sizes`"):
        load_adapter(tmp_path)
    assert not [*tmp_path.iterdir()]


def base_file(path, dtype="f32"):
    model = Llama(SIZES).init(seed=2)
    for weight in model.weights.values():
        weight.set(weight.numpy() * np.float32(8 if weight.ndim == 2 else 1))
    save_llama(path, model, dtype=dtype)
    return path


def logits(path, *adapters):
    model = load_model(path, rounds=False)
    for adapter, scale in adapters:
        model.attach(adapter, scale)
    return model.logits(model.context.tensor(np.arange(12)[None])).numpy()


@pytest.mark.parametrize("kind", ["plain", "norms", "dora"])
def test_a_merged_model_does_what_model_and_adapter_do(tmp_path, kind):
    base = base_file(tmp_path / "base.gguf")
    adapter = make_adapter(norms=kind == "norms", dora=kind == "dora")
    want = logits(base, (adapter, 0.7))
    reports = merge_adapters(base, [(adapter, 0.7)], tmp_path / "out.gguf")
    np.testing.assert_allclose(logits(tmp_path / "out.gguf"), want, rtol=1e-4, atol=5e-4)
    assert {r.name for r in reports if r.is_rewritten} == set(adapter.pairs)
    before, written = (load_model(path).weights for path in (base, tmp_path / "out.gguf"))
    for r in reports:
        if r.is_rewritten:  # f32 to f32: what float32 rounds off the exact sum
            w = before[r.name].numpy().reshape(-1, r.shape[-1])
            error = adapter.merged(r.name, w, 0.7) - written[r.name].numpy().reshape(w.shape)
            assert r.max_error == np.abs(error).max() > 0
            assert 0 < r.relative < 1e-7


def test_several_adapters_add_up_and_errors_are_those_of_rounding(tmp_path):
    base = base_file(tmp_path / "base.gguf")
    one, two = make_adapter(seed=1), make_adapter(seed=2)
    two = Adapter("two", two.pairs, two.alpha)
    want = logits(base, (one, 1.0), (two, -0.5))
    merge_adapters(base, [(one, 1.0), (two, -0.5)], tmp_path / "f32.gguf")
    np.testing.assert_allclose(logits(tmp_path / "f32.gguf"), want, rtol=1e-4, atol=5e-4)
    reports = merge_adapters(base, [(one, 1.0), (two, -0.5)], tmp_path / "q8.gguf", "Q8_0")
    merged = load_model(tmp_path / "f32.gguf").weights
    written = load_model(tmp_path / "q8.gguf").weights
    for r in reports:
        error = written[r.name].numpy() - merged[r.name].numpy()
        assert r.max_error == pytest.approx(np.abs(error).max(), rel=1e-4, abs=1e-7)
        assert (r.after == "Q8_0") == (len(r.shape) == 2)


def test_the_base_is_never_overwritten(tmp_path):
    base = base_file(tmp_path / "base.gguf")
    before = base.read_bytes()
    with pytest.raises(SettingError, match=r"base\.gguf as file to read and as file to write"):
        merge_adapters(base, [(make_adapter(), 1.0)], base)
    other = Adapter("other", {"blk.9.attn_q.weight": make_adapter().pairs["blk.0.attn_q.weight"]})
    with pytest.raises(SettingError, match="no such weight"):
        merge_adapters(base, [(other, 1.0)], tmp_path / "out.gguf")
    assert base.read_bytes() == before
    assert [*tmp_path.iterdir()] == [base]


def test_the_command_merges_and_reports(tmp_path, capsys):
    from yupana.cli import main

    base = base_file(tmp_path / "base.gguf", "f16")
    save_adapter(tmp_path / "a.gguf", make_adapter())
    save_peft(tmp_path / "b", make_adapter(seed=5), SIZES)
    out = tmp_path / "out.gguf"
    arguments = ["-m", str(base), "-o", str(out), "--lora", str(tmp_path / "a.gguf")]
    arguments += ["--lora-scaled", str(tmp_path / "b"), "0.5", "--json"]
    assert main(["export-lora", *arguments]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {r["name"] for r in rows if r["is_rewritten"]} == set(make_adapter().pairs)
    assert all(r["after"] == ("F16" if len(r["shape"]) == 2 else "F32") for r in rows)
    assert main(["export-lora", "-m", str(base), "-o", str(out)]) == 2
    assert "want at least one" in capsys.readouterr().err
    before = (tmp_path / "a.gguf").read_bytes()
    again = ["-m", str(base), "-o", str(tmp_path / "a.gguf"), "-l", str(tmp_path / "a.gguf")]
    assert main(["export-lora", *again]) == 2
    assert "The adapter would be lost" in capsys.readouterr().err
    assert (tmp_path / "a.gguf").read_bytes() == before


@pytest.mark.skipif(not DATA.is_dir(), reason="ggml's own files are not there")
def test_the_adapter_that_ggml_trained_survives_all_formats(tmp_path):
    read = load_adapter(DATA / "lora-r4a8-f32.ggla.bin")
    adapter = Adapter("a", {n: p for n, p in read.pairs.items() if "norm" not in n}, read.alpha)
    save_adapter(tmp_path / "a.gguf", adapter)
    save_ggla(tmp_path / "a.bin", load_adapter(tmp_path / "a.gguf"))
    sizes = load_model(DATA / "pi-e256l4-q8_0.gguf").sizes
    save_peft(tmp_path / "a", load_adapter(tmp_path / "a.bin"), sizes)
    assert_same(adapter, load_adapter(tmp_path / "a", sizes))
