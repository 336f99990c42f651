"""Checkpoints of ggml's programs: a real one, and ours written in their layout, gone on from."""

import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.small_runs import TEXT
from yupana.graphlib.context import Context
from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.formats import GgufFile, write_gguf
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import save_llama
from yupana.models.tokenizer import load_tokenizer
from yupana.models.vocabulary import Vocabulary
from yupana.train.checkpoint import ADAPTER, MODEL, Checkpoint
from yupana.train.finetune import finetune
from yupana.train.ggml_checkpoint import lora_ranks
from yupana.train.lora import TrainedAdapter
from yupana.train.lora_settings import LoraSettings
from yupana.train.pretrain import prepare
from yupana.train.settings import FinetuneSettings, RunSettings

DATA = Path(__file__).parents[2] / "shared" / "data"
REAL = DATA / "lora-r4a8-f32-ck.gguf"
SPM = DATA / "ggml-vocab-llama-spm.gguf"
STATE = "1812433254 3713160357 3109174145"  # of their generator: text, whatever it says
SEED = zlib.crc32(STATE.encode())
MOMENTS = ("first_moments", "second_moments")

# The order of parameters in ggml's graph, worked out by hand from its source: before the blocks,
# in each block from the last to the first, between, in each from the first to the last, behind.
ORDERS = {
    "fused": (
        "output output_norm",
        "ffn_down ffn_gate ffn_norm attn_output attn_q attn_norm",
        "token_embd",
        "attn_k attn_v ffn_up",
        "",
    ),
    "plain": (
        "output output_norm",
        "ffn_down ffn_gate ffn_norm attn_output attn_norm",
        "token_embd",
        "attn_v attn_k attn_q ffn_up",
        "",
    ),
    "fused from the right": (
        "",
        "",
        "token_embd",
        "attn_v attn_norm attn_k attn_q attn_output ffn_norm ffn_up ffn_gate ffn_down",
        "output_norm output",
    ),
    "plain from the right": (
        "",
        "",
        "token_embd",
        "attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_up ffn_gate ffn_down",
        "output_norm output",
    ),
}


def names_in(order: str, n_layer: int, halves: str = "") -> list[str]:
    """Names of parameters; with halves "ab" those of the pairs."""
    before, down, between, up, behind = (part.split() for part in ORDERS[order])
    names = [
        *before,
        *(f"blk.{i}.{name}" for i in reversed(range(n_layer)) for name in down),
        *between,
        *(f"blk.{i}.{name}" for i in range(n_layer) for name in up),
        *behind,
    ]
    if "right" in order:
        halves = halves[::-1]
    ends = [f".lora_{half}" for half in halves] or [""]
    return [f"{name}.weight{end}" for name in names for end in ends]


def as_ggml(ours: Path, path: Path, order: str, factors=None, **changes) -> None:
    """Write one of our checkpoints as ggml would have."""
    with GgufFile(ours) as file:
        metadata = {**file.metadata}
        values = {name: np.array(info.data) for name, info in file.tensors.items()}
    kind, step = metadata["training.type"], metadata["training.iteration_count"]
    names = names_in(order, metadata["llama.block_count"], "ab" * (kind == ADAPTER))
    for name in names if kind == ADAPTER else ():
        weight, _, half = name.partition(".lora_")
        s = np.float32((factors or {})[weight])
        for end, power in (("", 1), (".first_moments", -1), (".second_moments", -2)):
            key = name + end
            values[key] = values[key].T if half == "a" else values[key] * s**power
    flat = {m: np.concatenate([values[f"{n}.{m}"].ravel() for n in names]) for m in MOMENTS}
    entries = {k: v for k, v in metadata.items() if not k.startswith("training.")} | {
        "training.type": kind,
        "training.file_version": 1,
        "training.iteration_count": np.uint64(step),
        "training.sample_count": np.uint64(metadata["training.sample_count"]),
        "training.token_count": np.uint64(step),
        "training.epoch_count": np.uint64(0),
        "training.shuffle.samples_hash": np.uint64(1),
        "training.shuffle.rng_state": STATE,
        "training.shuffle.sample_count": np.uint64(1),
        "training.shuffle.next_sample": np.uint64(0),
        "optimizer.file_version": 0,
        "optimizer.convergence_past_count": 3,
        "optimizer.parameter_count": np.uint64(flat["first_moments"].size),
        "optimizer.iteration_count": step,
        "optimizer.just_initialized": False,
        "optimizer.adam.best_loss": 2.5,
        "optimizer.adam.previous_loss": 3.5,
        "optimizer.adam.no_improvement_count": 1,
    }
    past = np.array([4.0, 5.0, 6.0], np.float32)
    tensors = {name: values[name] for name in names}
    tensors |= {f"optimizer.adam.{m}": flat[m] for m in MOMENTS}
    write_gguf(path, entries | changes, tensors | {"optimizer.adam.past_loss_values": past})


def adapter_of(file: GgufFile, alpha: float) -> TrainedAdapter:
    """An adapter like that of a checkpoint, beside weights that take no memory."""
    context = Context(no_alloc=True)
    pairs = [name[:-2] for name in file.tensors if name.endswith(".lora_a")]
    weights = {}
    for name in pairs:
        inputs, outputs = (len(file.tensors[f"{name}_{half}"].data) for half in "ab")
        shape = (inputs,) if "norm" in name else (outputs, inputs)
        weights[name.removesuffix(".lora")] = context.leaf(shape, name=name)
    settings = LoraSettings(lora_alpha=alpha, **lora_ranks(file.metadata))
    return TrainedAdapter(weights, settings)


@pytest.mark.skipif(not REAL.is_file(), reason="needs ../shared/data")
def test_a_real_checkpoint_is_read_and_its_moments_are_where_they_belong():
    checkpoint = Checkpoint(REAL, ADAPTER)
    assert checkpoint.progress.step == 15
    assert checkpoint.progress.stop.previous == pytest.approx(9.63036)
    adapter = adapter_of(checkpoint.file, alpha=8.0)
    params = adapter.parameters
    state = {
        f"{n}.{m}": Context().leaf(p.shape, name=f"{n}.{m}")
        for n, p in params.items()
        for m in MOMENTS
    }
    factors = {name: pair.factor for name, pair in adapter.pairs.items()}
    checkpoint.restore(params, SimpleNamespace(kind="adam", state=state), factors)
    assert len(checkpoint.notes) == 1
    assert "new order" in checkpoint.notes[0]
    q = "blk.2.attn_q.weight"
    a, b = (checkpoint.file.tensors[f"{q}.lora_{half}"].data for half in "ab")
    assert (params[f"{q}.lora_a"].data == a.T).all()
    assert (params[f"{q}.lora_b"].data * np.float32(2.0) == b).all()  # s = 8 / 4
    # Tokens that were never met have no gradient; nothing else has none. Hence whole rows of
    # the embedding's B are zero, and not one other value, which no wrong order could give.
    seconds = {name: leaf.data for name, leaf in state.items() if name.endswith("second_moments")}
    rows = seconds.pop("token_embd.weight.lora_b.second_moments") == 0
    assert 0 < rows.all(axis=1).sum() == rows.sum() / 4 < 32000
    assert all((values > 0).all() for values in seconds.values())
    assert sum(map(np.size, state.values())) == 2 * 342281


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of our own from step 8 to 12, and the checkpoint it started from."""
    folder = tmp_path_factory.mktemp("trained")
    early = run_settings(folder, adam_iter=8, checkpoint_out=folder / "c.gguf")
    prepare(TEXT, early).train()
    late = prepare(TEXT, run_settings(folder, adam_iter=12, checkpoint_in=folder / "c.gguf"))
    return folder, late.train().history.losses[8:]


def run_settings(folder: Path, **changes) -> RunSettings:
    usual = {"ctx": 16, "batch": 4, "embd": 32, "ff": 48, "head": 4, "layer": 2, "threads": 1}
    more = {"vocab": "characters", "warmup": 4, "adam_alpha": 0.003, "seed": SEED}
    return RunSettings(model_out=folder / "m.gguf", **{**usual, **more, **changes})


@pytest.mark.parametrize("order", ORDERS)
def test_a_model_goes_on_as_if_ggml_had_written_our_checkpoint(trained, tmp_path, order):
    folder, losses = trained
    as_ggml(folder / "c.gguf", tmp_path / "g.gguf", order)
    run = prepare(TEXT, run_settings(tmp_path, adam_iter=12, checkpoint_in=tmp_path / "g.gguf"))
    assert run.loop.history.stop.best == 2.5
    assert run.loop.history.stop.previous == 3.5
    assert run.loop.history.stop.n_no_improvement == 1
    assert run.loop.history.stop.past == [6.0, 4.0, 5.0]  # of a ring of 3 after 8 steps
    assert run.train().history.losses == losses


@pytest.mark.skipif(not SPM.is_file(), reason="needs ../shared/data")
def test_a_model_with_the_vocabulary_of_llama_goes_on(tmp_path):
    sizes = {"embd": 8, "head": 2, "ff": 16, "layer": 1, "ctx": 8, "vocab_model": SPM}
    out = {"checkpoint_out": tmp_path / "c.gguf"}
    prepare(TEXT, run_settings(tmp_path, adam_iter=2, **sizes, **out)).train()
    as_ggml(tmp_path / "c.gguf", tmp_path / "g.gguf", "fused from the right")
    late = run_settings(tmp_path, adam_iter=3, ctx=8, checkpoint_in=tmp_path / "g.gguf")
    run = prepare(TEXT, late)
    assert any(leaf.data.any() for leaf in run.step.state.values())
    run.train()
    tokenizer = load_tokenizer(tmp_path / "m.gguf")
    ids = load_tokenizer(SPM).encode("the ñandú runs")
    assert tokenizer.encode("the ñandú runs") == ids
    assert tokenizer.decode(ids) == load_tokenizer(SPM).decode(ids)
    first = run.loop.batches.at(0).tokens[0]
    assert first[0] == tokenizer.bos


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """The same of an adapter, for a base of its own."""
    folder = tmp_path_factory.mktemp("adapted")
    vocabulary = Vocabulary.train(TEXT, 288)
    sizes = {"n_ctx": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_ff": 48}
    model = Llama(LlamaConfig(n_vocab=len(vocabulary), **sizes)).init(seed=3)
    save_llama(folder / "base.gguf", model, vocabulary)
    (folder / "text.txt").write_text(TEXT)
    finetune(
        lora_settings(folder, folder, adam_iter=8, checkpoint_out=folder / "c.gguf", **NORMS)
    ).train()
    late = {"adam_iter": 12, "checkpoint_in": folder / "c.gguf", **NORMS}
    return folder, finetune(lora_settings(folder, folder, **late)).train().history.losses[8:]


NORMS = {"rank_out_norm": 1, "rank_att_norm": 1, "rank_ffn_norm": 1}


def lora_settings(folder: Path, out: Path, **changes) -> FinetuneSettings:
    usual = {"ctx": 16, "batch": 4, "threads": 1, "warmup": 4, "adam_alpha": 0.003, "seed": SEED}
    files = {"model_base": folder / "base.gguf", "train_data": folder / "text.txt"}
    return FinetuneSettings(**files, lora_out=out / "a.gguf", **{**usual, **changes})


@pytest.mark.parametrize("order", ORDERS)
def test_an_adapter_goes_on_as_if_ggml_had_written_our_checkpoint(adapted, tmp_path, order):
    folder, losses = adapted
    factors = dict.fromkeys((n.partition(".lora")[0] for n in names_in(order, 2)), 1.0)
    factors |= {name: 4.0 for name in factors if "norm" in name}  # alpha / rank, which is 1
    as_ggml(folder / "c.gguf", tmp_path / "g.gguf", order, factors, **RANKS)
    late = {"adam_iter": 12, "checkpoint_in": tmp_path / "g.gguf"}
    assert finetune(lora_settings(folder, tmp_path, **late)).train().history.losses == losses


RANKS = {
    f"training.lora.rank.{name}": 1 if "norm" in name else 4
    for part in ORDERS["plain from the right"]
    for name in part.split()
}


def test_ranks_and_words_of_the_model_are_those_of_a_ggml_checkpoint(adapted, tmp_path):
    folder, _ = adapted
    factors = dict.fromkeys((n.partition(".lora")[0] for n in names_in("fused", 2)), 1.0)
    words = {"llama.rope.scale_linear": 0.5, "llama.rope.freq_base": 500.0}  # no inverse: see go_on
    as_ggml(folder / "c.gguf", tmp_path / "g.gguf", "fused", factors, **RANKS, **words)
    start = {"checkpoint_in": tmp_path / "g.gguf"}
    config = finetune(lora_settings(folder, tmp_path, **start)).model.config
    assert (config.rope_scale, config.rope_base) == (0.5, 500.0)
    finetune(lora_settings(folder, tmp_path, **start, rank_wq=4, rope_freq_scale=0.5, lora_r=4))
    for given, said in (
        ({"rank_wq": 8}, "rank_wq: got 8, want 4"),
        ({"rank_att_norm": 2}, "rank_att_norm: got 2, want 1"),
        ({"lora_r": 8}, "lora_r: got 8, want 4"),
        ({"rope_freq_scale": 0.25}, "rope_freq_scale: got 0.25, want 0.5"),
    ):
        with pytest.raises(SettingError, match=said):
            finetune(lora_settings(folder, tmp_path, **start, **given))


def test_alpha_does_not_change_what_a_ggml_adapter_does(adapted, tmp_path):
    folder, _ = adapted
    factors = dict.fromkeys((n.partition(".lora")[0] for n in names_in("fused", 2)), 1.0)
    as_ggml(folder / "c.gguf", tmp_path / "g.gguf", "fused", factors, **RANKS)
    losses = []
    for alpha in (4.0, 16.0):
        start = {"lora_alpha": alpha, "checkpoint_in": tmp_path / "g.gguf", "adam_iter": 12}
        run = finetune(lora_settings(folder, tmp_path, **start))
        losses.append(run.step.loss_of(run.loop.batches.at(0)))
    assert losses[0] == losses[1]


def test_moments_that_obey_no_law_start_from_zero_and_the_user_is_told(trained, tmp_path):
    folder, _ = trained
    as_ggml(folder / "c.gguf", tmp_path / "g.gguf", "fused")
    with GgufFile(tmp_path / "g.gguf") as file:
        values = {name: np.array(info.data) for name, info in file.tensors.items()}
        metadata = {**file.metadata}
    np.random.default_rng(1).shuffle(values["optimizer.adam.first_moments"])
    write_gguf(tmp_path / "g.gguf", metadata, values)
    told = []
    display = SimpleNamespace(tell=told.append)
    settings = run_settings(tmp_path, adam_iter=12, checkpoint_in=tmp_path / "g.gguf")
    run = prepare(TEXT, settings, display)
    assert not any(leaf.data.any() for leaf in run.step.state.values())
    assert "start from zero" in told[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training.file_version": 2}, "training.file_version: got 2, want at most 1"),
        ({"optimizer.type": "lbfgs"}, "another optimiser: got 'lbfgs', want 'adam'"),
        ({"llama.block_count": 1 << 31}, "block_count"),
        ({"training.type": ADAPTER}, "no such checkpoint: got training.type 'finetune_lora'"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused(trained, tmp_path, changes, words):
    folder, _ = trained
    as_ggml(folder / "c.gguf", tmp_path / "g.gguf", "fused")
    with GgufFile(tmp_path / "g.gguf") as file:
        values = {name: np.array(info.data) for name, info in file.tensors.items()}
        write_gguf(tmp_path / "h.gguf", {**file.metadata} | changes, values)
    with pytest.raises((FileFormatError, SettingError), match=words):
        prepare(TEXT, run_settings(tmp_path, checkpoint_in=tmp_path / "h.gguf"))


def test_parameters_that_are_missing_or_left_over_are_named(trained, tmp_path):
    folder, _ = trained
    as_ggml(folder / "c.gguf", tmp_path / "g.gguf", "fused")
    checkpoint = Checkpoint(tmp_path / "g.gguf", MODEL)
    params = prepare(TEXT, run_settings(tmp_path)).model.weights
    step = SimpleNamespace(kind="adam", state={})
    some = {name: p for name, p in params.items() if "blk.1" not in name}
    with pytest.raises(FileFormatError, match="holds more than is trained: got blk"):
        checkpoint.restore(some, step)
    wide = {**params, "output_norm.weight": params["output.weight"]}
    with pytest.raises(FileFormatError, match=r"output_norm.weight: got \(32,\), want \(\d+, 32\)"):
        checkpoint.restore(wide, step)
    more = {**params, "blk.2.attn_q.weight": params["blk.0.attn_q.weight"]}
    with pytest.raises(FileFormatError, match=r"no tensor 'blk\.2\.attn_q\.weight'"):
        checkpoint.restore(more, step)
