"""`yupana inspect`, `convert` and `quantize` on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests import hub_models as hub
from tests import old_files as old
from tests.command_line import call
from tests.test_gguf_split import write_parts
from yupana.models.formats import GgufFile, write_gguf
from yupana.models.inspect import Listed, inspect_file

DATA = Path(__file__).parents[2] / "shared" / "data"


def old_file(tmp_path, raw):
    (tmp_path / "old.bin").write_bytes(raw)
    return tmp_path / "old.bin"


def test_gguf_is_shown_as_a_table_and_as_json(tmp_path, capsys):
    entries = {
        "general.architecture": "llama", "tokenizer.ggml.tokens": [*"abcdefghij"],
        "llama.rope.freq_base": 10000.0, "n": np.int32([1, 2]), "bad": float("nan"),
        "text": "a\x1b[31m\nb" + "x" * 200,
    }  # fmt: skip
    path = tmp_path / "m.gguf"
    write_gguf(path, entries, {"w": np.ones((2, 3), np.float32), "q": ("Q8_0", (1, 32), bytes(34))})
    code, out, _ = call(capsys, "inspect", path)
    assert code == 0
    assert "GGUF version 3, little-endian, model" in out
    assert "10 × string: 'a', 'b'" in out
    assert "\x1b" not in out
    assert "2 tensors (1 F32, 1 Q8_0), 38 elements, 58 B" in out
    code, out, _ = call(capsys, "inspect", path, "--json")
    found = json.loads(out)
    assert found["entries"]["tokenizer.ggml.tokens"] == {
        "kind": "string", "length": 10, "first": [*"abcdefgh"],
    }  # fmt: skip
    assert found["entries"]["bad"] == "nan"
    w = {"name": "w", "shape": [2, 3], "type": "F32", "nbytes": 24}
    assert found["tensors"][0] == w | {"offset": GgufFile(path).tensors["w"].offset}
    assert found["entry_types"]["llama.rope.freq_base"] == "FLOAT32"
    assert found["entry_types"]["n"] == "ARRAY[INT32]"
    assert (found["elements"], found["bytes"], found["types"]) == (38, 58, {"F32": 1, "Q8_0": 1})


@pytest.mark.parametrize(
    ("kind", "holds"), [("adapter", "adapter"), ("prompt-cache", "prompt cache"), ("x", "tensors")]
)
def test_files_say_what_they_are(tmp_path, kind, holds):
    write_gguf(tmp_path / "m.gguf", {"general.type": kind}, {"w": np.ones(1, np.float32)})
    assert inspect_file(tmp_path / "m.gguf").holds == holds


def test_lists_are_shown_in_full_where_asked(tmp_path, capsys):
    path, words = tmp_path / "m.gguf", [f"w{k}" for k in range(50)]
    write_gguf(path, {"tokenizer.ggml.tokens": words, "n": np.arange(50, dtype=np.int32)}, {})
    code, out, _ = call(capsys, "inspect", path, "--json", "--arrays")
    entries = json.loads(out)["entries"]
    assert (code, entries["tokenizer.ggml.tokens"]["first"]) == (0, words)
    assert entries["n"] == {"kind": "int32", "length": 50, "first": [*range(50)]}
    code, _, err = call(capsys, "inspect", path, "--arrays")
    assert (code, err) == (2, "yupana: inspect: got --arrays alone, want --json with it.\n")


def test_tensors_of_a_model_in_parts_say_which(tmp_path):
    write_parts(tmp_path)
    tensors = inspect_file(next(tmp_path.glob("*-00001-of-*"))).tensors
    assert {t.part for t in tensors} == {
        f"model-{k:05}-of-00003.gguf"
        for k in (1, 3)  # the second holds none
    }
    for t in tensors:
        raw = (tmp_path / t.part).read_bytes()[t.offset : t.offset + t.nbytes]
        assert raw == GgufFile(tmp_path / t.part).tensors[t.name].raw.tobytes()


def test_other_formats_are_shown(tmp_path):
    a = np.ones((6, 2), np.float32)
    adapter = inspect_file(old_file(tmp_path, old.ggla_file({"w": (a, a)}, 2, 4)))
    assert (adapter.format, adapter.holds) == ("ggla version 1", "adapter")
    assert adapter.entries == {"rank": 2, "alpha": 4}
    model = inspect_file(old_file(tmp_path, old.llama2c_file(2, old.llama2c_weights(True))))
    assert (model.format, model.entries["group size"]) == (
        "llama2c version 2".replace("2c", "2.c"),
        32,
    )
    assert model.types == {"I8 by 32": 15, "F32": 5}
    starcoder = inspect_file(old_file(tmp_path, old.ggml_file(old.starcoder_weights())))
    assert starcoder.entries["tokens"] == Listed("bytes", 263, [*(chr(b) for b in range(8))])
    c = hub.config(48)
    hub.write(tmp_path / "hub", c, hub.weights(c))
    folder = inspect_file(tmp_path / "hub")
    assert folder.entries["architectures"] == Listed("str", 1, ["LlamaForCausalLM"])
    weights = inspect_file(tmp_path / "hub" / "model.safetensors")
    assert (weights.format, weights.tensors) == ("safetensors", folder.tensors)


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")
@pytest.mark.parametrize(
    ("name", "holds"),
    [("sh-Q8_0.gguf", "model"), ("lora-r4a8-f32-ck.gguf", "checkpoint"),
     ("ggml-vocab-llama-spm.gguf", "vocabulary"), ("lora-r4a8-f32.ggla.bin", "adapter")],
)  # fmt: skip
def test_real_files_are_told_apart(name, holds):
    assert inspect_file(DATA / name).holds == holds


def test_convert_quantise_and_look(tmp_path, capsys):
    source = old_file(tmp_path, old.llama2c_file(0, old.llama2c_weights(False)))
    (tmp_path / "t.bin").write_bytes(old.tokenizer_bin(True))
    code, out, _ = call(
        capsys, "convert", source, tmp_path / "m.gguf", "--vocab", tmp_path / "t.bin"
    )
    assert code == 0
    assert "model of architecture llama, 21 tensors" in out
    assert "note" not in out
    code, out, _ = call(capsys, "quantize", tmp_path / "m.gguf", tmp_path / "q.gguf", "q4_0")
    assert code == 0
    assert "blk.0.attn_q.weight 32 x 32 F32 Q4_0 576 B" in " ".join(out.split())
    code, out, _ = call(
        capsys, "quantize", tmp_path / "m.gguf", tmp_path / "q.gguf", "q8_0", "--json"
    )
    rows = {row["name"]: row for row in json.loads(out)}
    assert 0 < rows["blk.1.ffn_up.weight"]["relative"] < 0.01
    assert rows["output_norm.weight"]["after"] == "F32"
    code, out, _ = call(capsys, "convert", source, tmp_path / "m.gguf")
    assert "note: llama2.c keeps the vocabulary in a file of its own" in out


def test_mistakes_are_one_line(tmp_path, capsys):
    (tmp_path / "x").write_text("nothing of the kind, but long enough to look at")
    for arguments, code, words in (
        (("inspect", tmp_path / "x"), 1, "magic at byte 0: got b'nothing ', want that of GGUF"),
        (("inspect", tmp_path / "none"), 1, "No such file"),
        (("inspect", tmp_path), 1, "got no config.json in it"),
        (("convert", tmp_path / "x", tmp_path / "y"), 1, "not a model file"),
        (("quantize", tmp_path / "x", tmp_path / "y", "q4_0"), 1, "not a GGUF file"),
        (("quantize", tmp_path / "x", tmp_path / "y", "q5"), 2, "no such type: got 'q5'"),
    ):
        found, out, err = call(capsys, *arguments)
        assert (found, out) == (code, "")
        assert words in err
        assert len(err.splitlines()) == 1
