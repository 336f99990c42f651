"""`yupana draw`: any model file, checkpoint or sizes."""

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests import old_files as old
from tests.small_runs import SIZES, flags_of
from yupana.cli import main
from yupana.graphlib.context import Context
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import save_llama
from yupana.models.sketch import sketch_model
from yupana.models.starcoder import StarCoder

DATA = Path(__file__).parents[2] / "shared" / "data"
TINY = flags_of(SIZES | {"layer": 3, "n_vocab": 33})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(folder):
    """A model file of three layers."""
    config = LlamaConfig(n_vocab=33, n_ctx=16, n_embd=16, n_head=2, n_layer=3, n_ff=24)
    save_llama(folder / "m.gguf", Llama(config).init())
    return "m.gguf"


def source(*arguments):
    """The graphviz source that a call draws."""
    assert main(["draw", "-o", "g.dot", *arguments]) == 0
    return Path("g.dot").read_text("utf-8")


@pytest.mark.parametrize(
    ("what", "inside", "outside"),
    [
        ("forward", ["logits", "layer × 3"], ["cross_entropy", "backward"]),
        ("gradients", ["cross_entropy_loss", "blk.*.attn_q.weight.grad"], ["opt_step"]),
        ("step", ["opt_step_adamw", "update"], ["computed again"]),
    ],
)
def test_graphs_of_sizes(folder, what, inside, outside):
    text = source(*TINY, "-w", what)
    assert all(word in text for word in inside)
    assert not any(word in text for word in outside)


def test_options_reach_the_picture(folder):
    text = source(*TINY, "--sizes", "--flops", "--offsets", "--checkpointing=all")
    assert " KiB, " in text
    assert "kFLOP" in text
    assert ", at " in text
    assert "computed again" in text
    assert "layer ×" not in source(*TINY, "--no-fold")
    text = source(*TINY, "--around", "blk.1.attn_q", "--depth", "1")
    assert text.count("mul_mat") < 4
    assert "get_rows_back" not in source(*TINY, "--between", "tokens", "loss")


@pytest.mark.parametrize("way", ["none", "auto", "sqrt", "all"])
def test_what_is_computed_again_is_what_the_trainers_would(folder, way):
    text = source(*TINY, "--layer=9", "-w", "step", "--checkpointing", way)
    assert ("computed again" in text) == (way != "none")
    if way == "sqrt":  # ggml's switch says the same
        assert source(*TINY, "--layer=9", "-w", "step", "--use-checkpointing") == text


def test_times_are_measured(folder):
    assert re.search(r"\d (ns|µs|ms)\b", source(*TINY, "--times"))  # as quick as the machine is
    assert not re.search(r"\d (ns|µs|ms)\b", source(*TINY))


def test_a_model_file_is_drawn_as_it_would_run(model):
    text = source(model, "-w", "forward")
    assert "m.gguf: scores of the next tokens" in text
    assert "constant or frozen weight" in text
    assert ">parameter<" not in text
    text = source(model)
    assert ">parameter<" in text
    assert "i32 (8, 16)" in text  # as many tokens as the model can read
    text = source(model, "--lora-r", "4")
    assert "blk.*.attn_q.weight.lora_a" in text
    assert "blk.*.attn_q.weight.grad" not in text


def test_old_files_and_starcoder_are_drawn(folder):
    weights = old.starcoder_weights(n_head_kv=4)
    weights["output.weight"] = weights["token_embd.weight"]
    Path("old.bin").write_bytes(old.ggml_file(weights))
    assert isinstance(sketch_model("old.bin"), StarCoder)
    text = source("old.bin", "-w", "step", "--batch", "1")
    assert "blk.*.attn_qkv.bias" in text
    assert "opt_step_adamw" in text


@pytest.mark.parametrize("name", ["pi-e256l4-q8_0.gguf", "sh-Q8_0.gguf"])
def test_files_of_llama_cpp_are_drawn(folder, name):
    if not (DATA / name).exists():
        pytest.skip("the shared test data are not there")
    text = source(str(DATA / name), "-w", "forward")
    assert "Q8_0 (256, 256)" in text
    assert "layer × 4" in text


def test_sketches_take_no_memory_and_have_the_types_of_the_file(model):
    sketch = sketch_model(model)
    assert {w.dtype.name for w in sketch.weights.values()} == {"f32"}
    assert not any(w.is_param or w.has_value for w in sketch.weights.values())
    assert all(w.is_param for w in sketch_model(model, trainable=True).weights.values())
    tokens = Context(no_alloc=True).input((1, 4), "i32")
    assert sketch.logits(tokens).shape == (1, 4, 33)


def test_memory_is_drawn_with_and_without_checkpointing(model):
    assert main(["draw", model, "-w", "memory", "-o", "m.svg"]) == 0
    text = Path("m.svg").read_text("utf-8")
    assert "all results kept" in text
    assert "with gradient checkpointing" in text


def test_a_run_is_drawn_or_traced(folder, capsys):
    assert main(["draw", *TINY, "-w", "timeline", "-o", "t.svg"]) == 0
    assert main(["draw", *TINY, "-w", "timeline", "-o", "t.json"]) == 0
    assert capsys.readouterr().out.split() == ["t.svg", "t.json"]
    assert ElementTree.parse("t.svg").getroot().tag.endswith("svg")
    events = json.loads(Path("t.json").read_text("utf-8"))["traceEvents"]
    assert any(event["name"] == "opt_step_adamw" for event in events)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.gguf"], 1, "none.gguf: No such file"),
        (["--around", "blk.9"], 1, "got 'blk.9', want one such as blk."),
        (["-o", "g.jpg"], 2, "got file g.jpg, want a name ending in .svg"),
        (["-w", "memory", "-o", "m.png"], 2, "want a name ending in .svg"),
        (["--batch", "0"], 2, "got batch 0"),
        (["--embd", "15"], 2, "n_embd: got 15"),
    ],
)
def test_mistakes_are_told_in_a_line(folder, capsys, arguments, code, message):
    assert main(["draw", *TINY, *arguments]) == code
    err = capsys.readouterr().err
    assert err.startswith("yupana: ")
    assert message in err
    assert not list(folder.iterdir())


def test_what_is_no_model_is_told(folder, capsys):
    weights = {"blk.0.attn_q.weight.lora_a": np.zeros((2, 4), np.float32)}
    from yupana.models.formats import write_gguf

    write_gguf("a.gguf", {"general.architecture": "llama"}, weights)
    assert main(["draw", "a.gguf"]) == 1
    assert "not a whole model" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("dot") is None, reason="the program dot is not installed")
def test_the_default_is_an_svg_of_the_gradients(folder, capsys):
    assert main(["draw", *TINY]) == 0
    assert capsys.readouterr().out == "graph.svg\n"
    assert ElementTree.parse("graph.svg").getroot().tag.endswith("svg")
