"""LLaMA and baby-llama: sizes, names, initial weights, the recorded graph, the task's data."""

import math

import numpy as np
import pytest

from yupana.graphlib.context import Context
from yupana.graphlib.errors import ContextError, SettingError, ShapeError
from yupana.graphlib.graph import Graph
from yupana.models.baby_llama import (
    BabyLlama,
    baby_config,
    draw_token,
    example,
    generate_wave,
    wave_tokens,
)
from yupana.models.llama import Llama, LlamaConfig

SMALL = LlamaConfig(n_vocab=11, n_ctx=8, n_embd=16, n_layer=2, n_head=4, n_head_kv=2, n_ff=24)


@pytest.mark.parametrize(
    ("n_embd", "n_mult", "n_ff"), [(32, 2, 86), (128, 8, 344), (256, 256, 768), (4096, 256, 11008)]
)
def test_feed_forward_width_follows_the_rule(n_embd, n_mult, n_ff):
    assert LlamaConfig(9, n_embd=n_embd, n_mult=n_mult).n_ff == n_ff
    assert LlamaConfig(9, n_embd=n_embd, n_mult=n_mult, n_ff=5).n_ff == 5


def test_sizes_that_are_not_given_follow_from_others():
    config = LlamaConfig(65, n_embd=128, n_head=4)
    assert (config.n_head_kv, config.n_rot, config.head_width) == (4, 32, 32)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"n_vocab": 0}, "n_vocab: got 0, want at least 1"),
        ({"n_layer": -1}, "n_layer: got -1"),
        ({"n_head": 0}, "n_head: got 0"),
        ({"n_embd": 30}, "n_embd: got 30, want a multiple of n_head 8"),
        ({"n_head_kv": 3}, "n_head_kv: got 3, want a divisor of n_head 8"),
        ({"n_head_kv": -2}, "n_head_kv: got -2"),
        ({"n_rot": 3}, "n_rot: got 3, want even, 2 to n_embd / n_head = 8"),
        ({"n_rot": 10}, "n_rot: got 10"),
        ({"n_embd": 24}, "n_rot: got 3"),
        ({"n_ff": -8}, "n_ff: got -8"),
        ({"n_mult": 0}, "n_mult: got 0"),
        ({"rms_eps": 0.0}, "rms_eps: got 0.0, want a positive number"),
        ({"rope_base": math.inf}, "rope_base: got inf"),
        ({"rope_scale": math.nan}, "rope_scale: got nan"),
    ],
)
def test_sizes_are_checked(wrong, words):
    with pytest.raises(SettingError, match=words):
        LlamaConfig(**{"n_vocab": 9, "n_embd": 64, **wrong})


def test_weights_have_the_names_and_shapes_of_gguf():
    shapes = {name: weight.shape for name, weight in Llama(SMALL).weights.items()}
    block = {
        "attn_norm": (16,), "attn_q": (16, 16), "attn_k": (8, 16), "attn_v": (8, 16),
        "attn_output": (16, 16), "ffn_norm": (16,), "ffn_gate": (24, 16), "ffn_up": (24, 16),
        "ffn_down": (16, 24),
    }  # fmt: skip
    want = {"token_embd.weight": (11, 16), "output_norm.weight": (16,), "output.weight": (11, 16)}
    want |= {f"blk.{i}.{name}.weight": shape for i in (0, 1) for name, shape in block.items()}
    assert shapes == want
    model = Llama(SMALL)
    assert model.n_parameters == sum(math.prod(shape) for shape in want.values())
    assert all(weight.is_param for weight in model.weights.values())
    assert model.context["blk.1.ffn_up.weight"] is model.weights["blk.1.ffn_up.weight"]


def test_names_are_those_of_the_gguf_package():
    gguf = pytest.importorskip("gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, SMALL.n_layer)
    known = {f"{name}.weight" for _, name in names.mapping.values()}
    assert set(Llama(SMALL).weights) <= known


def test_initial_weights_keep_the_stream_at_one_scale():
    config = LlamaConfig(n_vocab=256, n_embd=64, n_layer=8, n_head=2)
    model = Llama(config).init(seed=5)
    for name, weight in model.weights.items():
        values = weight.numpy()
        if weight.ndim == 1:
            assert (values == 1).all()
            continue
        into_stream = "attn_output" in name or "ffn_down" in name
        deviation = 0.02 / math.sqrt(16) if into_stream else 0.02
        assert abs(values.mean()) < deviation / 10
        assert values.std() == pytest.approx(deviation, rel=0.05)
    again = Llama(config).init(seed=5)
    other = Llama(config).init(seed=6)
    name = "blk.7.ffn_up.weight"
    np.testing.assert_array_equal(again.weights[name].numpy(), model.weights[name].numpy())
    assert (other.weights[name].numpy() != model.weights[name].numpy()).any()


def test_untrained_loss_is_that_of_guessing():
    model = Llama(SMALL).init(seed=1)
    ids = np.random.default_rng(0).integers(0, 11, (4, 9), dtype=np.int32)
    loss = model.loss(model.context.tensor(ids[:, :-1]), model.context.tensor(ids[:, 1:]))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(math.log(11), abs=0.02)


def test_masked_targets_do_not_count():
    model = Llama(SMALL).init(seed=1)
    ids = np.random.default_rng(0).integers(0, 11, (2, 9), dtype=np.int32)
    tokens, targets = model.context.tensor(ids[:, :-1]), ids[:, 1:].copy()
    mask = np.ones((2, 8), np.float32)
    mask[1, 3:] = 0
    masked = model.loss(tokens, model.context.tensor(targets), model.context.tensor(mask)).item()
    targets[1, 3:] = -1
    assert model.loss(tokens, model.context.tensor(targets)).item() == masked
    assert model.loss(tokens, model.context.tensor(ids[:, 1:])).item() != masked


def test_scores_depend_on_what_came_before_only():
    model = Llama(SMALL).init(seed=1)
    ids = np.array([[1, 2, 3, 4, 5]])
    changed = np.array([[1, 2, 3, 9, 5]])
    one, two = (model.logits(model.context.tensor(t)).numpy() for t in (ids, changed))
    assert one.shape == (1, 5, 11)
    np.testing.assert_array_equal(one[:, :3], two[:, :3])
    assert (one[:, 3:] != two[:, 3:]).any(axis=-1).all()


def test_graph_repeats_nothing_for_grouped_heads():
    model = Llama(SMALL, Context(no_alloc=True))
    graph = Graph(model.logits(model.context.input((3, 8), "i32")))
    ops = [node.op.name for node in graph]
    per_block = {"mul_mat": 9, "rms_norm": 2, "mul": 3, "add": 2, "rope": 2, "soft_max": 1,
                 "diag_mask_inf": 1, "silu": 1, "cont": 1, "reshape": 4, "permute": 4}  # fmt: skip
    want = {name: SMALL.n_layer * n for name, n in per_block.items()}
    want["mul_mat"] += 1  # the output
    want["rms_norm"] += 1
    want["mul"] += 1
    want["get_rows"] = 1
    assert {name: ops.count(name) for name in {*ops}} == want


def test_a_model_is_counted_without_memory():
    context = Context(no_alloc=True)
    model = Llama(LlamaConfig(n_vocab=32000, n_embd=4096, n_layer=32, n_head=32), context)
    assert model.n_parameters == 6_738_415_616  # LLaMA 7B
    assert context.used_mem == 0


def test_an_arena_too_small_says_what_is_needed():
    with pytest.raises(ContextError, match=r"arena full at .*needs 704 bytes, 640 of 640 are left"):
        Llama(SMALL, Context(mem_size=640))


@pytest.mark.parametrize("shape", [(2, 9), (8,), (2, 0)])
def test_tokens_must_fit_the_context(shape):
    model = Llama(SMALL)
    with pytest.raises(ShapeError, match=r"time from 1 to n_ctx = 8"):
        model.logits(model.context.input(shape, "i32"))


# The task of baby-llama


def test_baby_llama_has_the_sizes_of_ggml():
    config = baby_config()
    got = {name: getattr(config, name) for name in LlamaConfig.__dataclass_fields__}
    assert got == {
        "n_vocab": 8, "n_ctx": 8, "n_embd": 32, "n_layer": 1, "n_head": 8, "n_head_kv": 8,
        "n_ff": 86, "n_mult": 2, "n_rot": 4, "rms_eps": 5e-6, "rope_base": 10000.0,
        "rope_scale": 1.0, "tied": False, "head_width": 4, "value_width": 4, "yarn": False,
        "n_ctx_orig": 8, "rope_magnitude": 1.0, "architecture": "llama",
    }  # fmt: skip
    assert baby_config(n_embd=256, n_head=8).n_rot == 16


def test_factored_weights_replace_attention_and_output():
    plain = {name: weight.shape for name, weight in BabyLlama(baby_config()).weights.items()}
    model = BabyLlama(baby_config(n_head_kv=2), n_lora=64)
    shapes = {name: weight.shape for name, weight in model.weights.items()}
    for name, outputs in (("blk.0.attn_q", 32), ("blk.0.attn_k", 8), ("blk.0.attn_v", 8),
                          ("blk.0.attn_output", 32), ("output", 8)):  # fmt: skip
        assert shapes.pop(f"{name}.a") == (outputs, 64)
        assert shapes.pop(f"{name}.b") == (64, 32)
        plain.pop(f"{name}.weight")
    assert shapes == plain
    with pytest.raises(SettingError, match="n_lora: got 0"):
        BabyLlama(baby_config(), n_lora=0)


def test_factored_model_computes_the_multiplied_out_one():
    factored = BabyLlama(baby_config(), n_lora=5).init()
    plain = BabyLlama(baby_config())
    for name, values in factored.arrays().items():
        plain.weights[name].set(values)
    tokens = Context().tensor(example(3, plain.config)[0])
    got, want = factored.logits(tokens).numpy(), plain.logits(tokens).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_lora", [None, 64])
def test_initial_weights_are_cut_and_scaled_as_in_ggml(n_lora):
    model = BabyLlama(baby_config(), n_lora).init()
    for name, weight in model.weights.items():
        values = weight.numpy() * math.sqrt(sum(weight.shape))
        assert np.abs(values).max() <= 1 + 1e-6, name
        if weight.size > 500:
            # A third of the numbers is cut to -1 or 1.
            assert (np.abs(values) > 1 - 1e-6).mean() == pytest.approx(0.317, abs=0.06)
            assert values.std() == pytest.approx(0.718, abs=0.04)


def test_examples_follow_the_formula():
    for number in (0, 7, 255):
        tokens, targets = example(number, baby_config())
        assert tokens.shape == (8, 8)
        assert tokens.dtype == np.int32
        assert targets.shape == (8, 8, 8)
        assert targets.dtype == np.float32
        for k in range(8):
            identity, before = 8 * (64 * number) + k, 0
            for i in range(1, 9):
                z = (math.sin(identity + i * 3.14159 / 8) + 1) / 2
                token = max(1, min(1 + int(z * 7), 7))
                assert tokens[k, i - 1] == before
                assert targets[k, i - 1].tolist() == [1 if v == token else -1 for v in range(8)]
                before = token


def test_squared_error_is_the_sum_over_all():
    model = BabyLlama(baby_config()).init()
    tokens, targets = example(1, model.config)
    leaves = [model.context.tensor(values) for values in (tokens, targets)]
    logits = model.logits(leaves[0]).numpy().astype(float)
    error = model.squared_error(*leaves)
    assert error.shape == ()
    assert error.item() == pytest.approx(((targets - logits) ** 2).sum(), rel=1e-5)


def test_a_wave_is_generated_from_a_window_that_begins_with_zero():
    model = BabyLlama(baby_config()).init()
    got = [*generate_wave(model, 12)]
    window = [0, *wave_tokens(137, model.config)[:6].tolist()]
    for token in got:
        scores = model.logits(Context().tensor([window])).numpy()[0, -1]
        assert token == scores.argmax()
        window = [0, *window[2:], token]


def test_a_token_is_drawn_at_its_height():
    assert [draw_token(k, 4) for k in range(4)] == ["X   ", " X  ", "  X ", "   X"]
