"""`yupana convert` on adapters: every form to every other, and what a form has no place for."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import hub_models as hub
from tests.command_line import call
from tests.test_adapter_files import SIZES, assert_same, base_file, logits, make_adapter
from yupana.graphlib.errors import FileFormatError
from yupana.models.adapter_files import load_adapter
from yupana.models.adapter_peft import save_peft
from yupana.models.adapter_save import gguf_adapter, save_adapter, save_as_named
from yupana.models.formats import GgufFile, write_gguf
from yupana.models.inspect import inspect_file
from yupana.models.lora import Adapter

NAMES = {"gguf": "a.gguf", "ggla": "a.bin", "peft": "a"}


def mlx_folder(path, adapter, scale=2.5, **config):
    """As MLX saves it: from PEFT's tensors, each the other way round."""
    save_peft(path, adapter, SIZES)
    tensors = {}
    for name, values in load_file(path / "adapter_model.safetensors").items():
        module, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        new = {"A.weight": "a", "B.weight": "b", "embedding_A": "a", "embedding_B": "b"}
        if part in new:
            tensors[f"{module}.lora_{new[part]}"] = np.ascontiguousarray(values.T)
        else:
            tensors[f"{module}.m"] = values
    (path / "adapter_model.safetensors").unlink()
    save_file(tensors, path / "adapters.safetensors")
    said = {"fine_tune_type": "lora", "lora_parameters": {"rank": 3, "scale": scale}} | config
    (path / "adapter_config.json").write_text(json.dumps(said))
    return path


@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("target", NAMES)
def test_every_form_becomes_every_other(tmp_path, capsys, source, target):
    base, adapter = base_file(tmp_path / "base.gguf"), make_adapter()
    (tmp_path / "new").mkdir()
    old, new = tmp_path / NAMES[source], tmp_path / "new" / NAMES[target]
    save_as_named(old, adapter, SIZES, str(base))
    code, out, err = call(capsys, "convert", old, new, "--model-base", base)
    if source == target:
        assert (code, out) == (2, "")
        assert f"got {source} and the name {new}, want another form" in err
        return
    assert (code, err) == (0, "")
    assert f"{new}: adapter of architecture llama, 32 tensors" in out
    assert inspect_file(new).holds == "adapter"
    assert_same(adapter, load_adapter(new, SIZES))
    np.testing.assert_allclose(
        logits(base, (load_adapter(new, SIZES), 0.5)), logits(base, (adapter, 0.5)), rtol=1e-4,
        atol=5e-4,
    )  # fmt: skip


def test_alpha_stays_apart_and_pairs_keep_their_bits(tmp_path, capsys):
    """Ranks differ here, and alpha over rank with them: as PEFT says it, and llama.cpp reads it."""
    adapter = make_adapter(alpha=6.0)
    base = base_file(tmp_path / "base.gguf")
    save_peft(tmp_path / "a", adapter, SIZES, str(base))  # which names the base: no flag needed
    code, *_ = call(capsys, "convert", tmp_path / "a", tmp_path / "a.gguf")
    assert code == 0
    read = load_adapter(tmp_path / "a.gguf")
    assert read.alpha == 6.0
    for name, (a, b) in adapter.pairs.items():
        np.testing.assert_array_equal(read.pairs[name][0], a)
        np.testing.assert_array_equal(read.pairs[name][1], b)
    with GgufFile(tmp_path / "a.gguf") as file:
        assert file.metadata["general.name"] == "a"
        assert file.metadata["general.file_type"] == 0


def test_a_type_is_chosen_for_gguf_only(tmp_path, capsys):
    base = base_file(tmp_path / "base.gguf")
    save_peft(tmp_path / "a", make_adapter(), SIZES, str(base))
    assert call(capsys, "convert", tmp_path / "a", tmp_path / "h.gguf", "--dtype", "f16")[0] == 0
    assert inspect_file(tmp_path / "h.gguf").types == {"F16": 32}
    code, _, err = call(capsys, "convert", tmp_path / "a", tmp_path / "a.bin", "--dtype", "f16")
    assert code == 2
    assert "want a GGUF adapter" in err
    assert not (tmp_path / "a.bin").exists()


def test_a_folder_of_hugging_face_serves_as_base(tmp_path, capsys):
    c = hub.config(48)
    hub.write(tmp_path / "hub", c, hub.weights(c))
    call(capsys, "convert", tmp_path / "hub", tmp_path / "m.gguf")
    with GgufFile(tmp_path / "m.gguf") as file:
        outputs, inputs = file.tensors["blk.0.attn_q.weight"].shape
    a, b = np.ones((2, inputs), "f4"), np.arange(2.0 * outputs, dtype="f4").reshape(outputs, 2)
    adapter = Adapter("a", {"blk.0.attn_q.weight": (a, b)})
    save_adapter(tmp_path / "a.gguf", adapter)
    for base in ("hub", "m.gguf"):
        out = tmp_path / f"by-{base}".replace(".", "-")
        code, *_ = call(capsys, "convert", tmp_path / "a.gguf", out, "-m", tmp_path / base)
        assert code == 0
    one, other = (load_file(tmp_path / n / "adapter_model.safetensors") for n in
                  ("by-hub", "by-m-gguf"))  # fmt: skip
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_of_mlx_are_read(tmp_path, capsys, dora):
    kind = "dora" if dora else "lora"
    adapter = make_adapter(dora=dora, alpha=None)
    folder = mlx_folder(tmp_path / "mlx", adapter, fine_tune_type=kind)
    read = load_adapter(folder, SIZES)
    for name in adapter.pairs:
        zeros = np.zeros((len(adapter.pairs[name][1]), adapter.pairs[name][0].shape[1]), "f4")
        np.testing.assert_allclose(
            read.sums(name, zeros), 2.5 * adapter.sums(name, zeros), rtol=1e-5, atol=1e-6
        )
    assert read.magnitudes.keys() == adapter.magnitudes.keys()
    for name, lengths in adapter.magnitudes.items():
        np.testing.assert_array_equal(read.magnitudes[name], lengths)
    shown = inspect_file(folder)
    assert (shown.format, shown.holds) == ("MLX adapter folder", "adapter")
    base = base_file(tmp_path / "base.gguf")
    code, _, err = call(capsys, "convert", folder, tmp_path / "a.gguf", "-m", base)
    if dora:
        assert code == 2
        assert "row lengths (DoRA), which a GGUF adapter has no place for" in err
        assert not (tmp_path / "a.gguf").exists()
    else:
        assert code == 0
        assert_same(read, load_adapter(tmp_path / "a.gguf"))
    assert call(capsys, "convert", folder, tmp_path / "peft", "-m", base)[0] == 0
    assert_same(read, load_adapter(tmp_path / "peft", SIZES))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"fine_tune_type": "full"}, "fine_tune_type: got 'full', want 'lora' or 'dora'"),
        ({"lora_parameters": None}, "scale in lora_parameters: got None"),
        ({"lora_parameters": {"scale": 0}}, "scale in lora_parameters: got 0"),
    ],
)
def test_folders_of_mlx_that_say_something_else_are_refused(tmp_path, capsys, config, words):
    folder = mlx_folder(tmp_path / "mlx", make_adapter(), **config)
    base = base_file(tmp_path / "base.gguf")
    code, _, err = call(capsys, "convert", folder, tmp_path / "a.gguf", "-m", base)
    assert code == 1
    assert words in err


def test_what_cannot_be_converted_is_told(tmp_path, capsys):
    base = base_file(tmp_path / "base.gguf")
    save_adapter(tmp_path / "a.gguf", make_adapter())
    save_adapter(tmp_path / "norms.gguf", make_adapter(norms=True))
    save_peft(tmp_path / "peft", make_adapter(), SIZES, "a/model/elsewhere")
    save_peft(tmp_path / "dora", make_adapter(dora=True), SIZES, str(base))
    mlx_folder(tmp_path / "mlx", make_adapter())
    c = hub.config(48)
    hub.write(tmp_path / "hub", c, hub.weights(c))
    before = {path: path.read_bytes() for path in tmp_path.glob("*.gguf")}
    for arguments, words in (
        (("a.gguf", "new"), "Pass --model-base"),
        (("peft", "new.gguf"), "Pass --model-base"),
        (("peft", "new.gguf", "-m", "hub"), "The adapter belongs to another model"),
        (("peft", "base.gguf", "-m", "base.gguf"), "The original would be lost"),
        (("mlx", "mlx", "-m", "base.gguf"), "The original would be lost"),
        (("norms.gguf", "new", "-m", "base.gguf"), "PEFT has no pairs of norms"),
        (("dora", "new.bin"), "row lengths (DoRA), which a ggla file has no place for"),
        (("a.gguf", "new.bin", "--vocab", "base.gguf"), "with an adapter, want none"),
        (("hub", "new.gguf", "-m", "base.gguf"), "with a model, want it for adapters"),
        (("base.gguf", "new.bin"), "`yupana quantize` changes types"),
    ):
        full = [a if a.startswith("-") else tmp_path / a for a in arguments]
        code, out, err = call(capsys, "convert", *full)
        assert (code, out) == (2, ""), arguments
        assert words in err
        assert not [*tmp_path.glob("new*")]
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*.gguf")}


@pytest.mark.parametrize("target", ["a.bin", "a"])
def test_whole_norms_that_are_left_out_are_named(tmp_path, capsys, target):
    base, old = base_file(tmp_path / "base.gguf"), tmp_path / "old.gguf"
    entries, tensors = gguf_adapter(make_adapter())
    norms = [f"blk.{n}.{kind}_norm.weight" for n in range(2) for kind in ("attn", "ffn")]
    for names, told in (
        (norms[:1], "got blk.0.attn_norm.weight, want pairs"),
        ([*norms, "output_norm.weight"], f"got {', '.join(norms)} and 1 more, want pairs"),
    ):
        write_gguf(old, entries, tensors | {name: np.ones(64, "f4") for name in names})
        with pytest.warns(UserWarning, match=f"old.gguf: whole norms are left out.*: {told}"):
            code, out, _ = call(capsys, "convert", old, tmp_path / target, "-m", base)
        assert code == 0
        assert "32 tensors" in out
    with pytest.warns(UserWarning, match="whole norms are left out"):  # as wherever it is read
        call(capsys, "export-lora", "-m", base, "-l", old, "-o", tmp_path / "merged.gguf")
    write_gguf(old, entries, {name: np.ones(64, "f4") for name in norms})
    with pytest.raises(FileFormatError, match="got no pairs, want tensors that end in"):
        load_adapter(old)


def test_ggla_is_for_llamas(tmp_path, capsys):
    pair = np.ones((2, 8), "f4"), np.ones((4, 2), "f4")
    adapter = Adapter("a", {"blk.0.attn_q.weight": pair}, architecture="starcoder")
    save_adapter(tmp_path / "a.gguf", adapter)
    code, _, err = call(capsys, "convert", tmp_path / "a.gguf", tmp_path / "a.bin")
    assert code == 2
    assert "got an adapter for 'starcoder', want 'llama'" in err


def test_folders_of_peft_are_inspected(tmp_path, capsys):
    save_peft(tmp_path / "a", make_adapter(), SIZES)
    code, out, _ = call(capsys, "inspect", tmp_path / "a")
    assert code == 0
    assert "a: PEFT folder, adapter" in " ".join(out.split())
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in out
    code, out, _ = call(capsys, "inspect", tmp_path / "a", "--json")
    found = json.loads(out)
    assert (found["holds"], found["entries"]["r"], len(found["tensors"])) == ("adapter", 3, 32)
