"""A model larger than the caches: single tokens and a prompt of 128, beside llama.cpp in turn.

    python benchmarks/larger.py [ROUNDS]

Random weights of the sizes of Qwen 2.5 0.5B in Q8_0, 500 MB. Where the llama_cpp package is
installed, it takes turns in the same process on as many threads.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from decode import PAUSE_S, has_llama_cpp
from measure import in_turn
from tokenizers.pre_tokenizers import ByteLevel

from yupana.graphlib.kernels.quant_rows import quantize_rows
from yupana.models.formats import write_gguf
from yupana.models.llama import LlamaConfig, optional_shapes, weight_shapes
from yupana.models.llama_gguf import llama_metadata
from yupana.models.loading import load_model
from yupana.models.session import Session

CONFIG = LlamaConfig(
    n_vocab=151936, n_ctx=2048, n_embd=896, n_layer=24, n_head=14, n_head_kv=2, n_ff=4864,
    rms_eps=1e-6, rope_base=1e6, tied=True, architecture="qwen2",
)  # fmt: skip
PROMPT, START, STEPS = 128, 16, 5


def write_model(path: Path) -> None:
    """The model with random weights, and a vocabulary of bytes and names."""
    random, tensors = np.random.default_rng(0), {}
    biases = {n: s for n, s in optional_shapes(CONFIG).items() if n.endswith(("q.bias", "k.bias"))}
    for name, shape in {**weight_shapes(CONFIG), **biases}.items():
        if len(shape) == 1:
            tensors[name] = np.full(shape, float("norm" in name), np.float32)
            continue
        values = random.standard_normal(shape, np.float32) * np.float32(0.02)
        tensors[name] = ("Q8_0", shape, quantize_rows(values, "Q8_0"))
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"t{k}" for k in range(len(letters), CONFIG.n_vocab))]
    words = {"model": "gpt2", "pre": "qwen2", "tokens": tokens, "merges": [], "eos_token_id": 0}
    entries = {f"tokenizer.ggml.{key}": value for key, value in words.items()}
    write_gguf(path, {**llama_metadata(CONFIG), **entries, "general.file_type": 7}, tensors)


def ours(path: Path, threads: int, ids: list[int]) -> tuple[Callable[[], None], Callable[[], None]]:
    session = Session(load_model(path), n_ctx=256, threads=threads)

    def prompt() -> None:
        session.truncate(0)
        session.eval(ids)

    def decode() -> None:
        session.truncate(START)
        for token in ids[:STEPS]:
            session.eval([token])

    return prompt, decode


def theirs(
    path: Path, threads: int, ids: list[int]
) -> tuple[Callable[[], None], Callable[[], None]]:
    import llama_cpp

    sizes = {"n_ctx": 256, "n_batch": PROMPT, "n_threads": threads, "n_threads_batch": threads}
    model = llama_cpp.Llama(str(path), **sizes, verbose=False, logits_all=False)

    def run(tokens: list[int], position: int) -> None:
        model._batch.set_batch(batch=tokens, n_past=position, logits_all=False)
        model._ctx.decode(model._batch)

    def prompt() -> None:
        model._ctx.kv_cache_clear()
        run(ids, 0)

    def decode() -> None:
        model._ctx.kv_cache_seq_rm(-1, START, -1)
        for k in range(STEPS):
            run([ids[k]], START + k)

    return prompt, decode


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    ids = np.random.default_rng(0).integers(0, CONFIG.n_vocab, PROMPT).tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        write_model(path)
        for threads in (1, 2):
            sides = {"yupana": ours(path, threads, ids)}
            if has_llama_cpp():
                sides["llama.cpp"] = theirs(path, threads, ids)
            for k, (what, count) in enumerate((("prompt", PROMPT), ("decode", STEPS))):
                for prompt, _ in sides.values():
                    prompt()
                runs = {name: calls[k] for name, calls in sides.items()}
                seconds = in_turn(runs, rounds, pause_s=PAUSE_S)
                rates = {name: count / s for name, s in seconds.items()}
                told = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
                print(f"{what}, {threads} thread(s), tokens per second: {told}", flush=True)


if __name__ == "__main__":
    main()
