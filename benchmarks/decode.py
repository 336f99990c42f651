"""Tokens per second of one model in several types: decoding, and reading a prompt of 128.

    python benchmarks/decode.py MODEL.gguf [ROUNDS]

The model is written in each type to a temporary folder. Decoding goes from position 16 to 76; of
the prompt only the last row of scores is computed. Where the llama_cpp package is installed, it
takes turns in the same process on as many threads; else the last column compares with figures of
llama.cpp (the better of an old and a newer version, one thread) for a model of width 256 with 4
layers and 32,000 tokens.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import in_turn

from yupana.models.loading import load_model
from yupana.models.quantize import quantize_model
from yupana.models.session import Session

TYPES = ("F32", "F16", "Q8_0", "Q4_0", "Q4_K")
KNOWN = {
    "decode": {"Q8_0": 2683, "Q4_0": 2386, "F16": 2321, "F32": 820},
    "prompt": {"F32": 13352, "Q8_0": 12822, "Q4_0": 18870},
}
PROMPT, START, STEPS = 128, 16, 60
PAUSE_S = 0.2  # for so long llama.cpp's idle threads may look for work
Sides = dict[str, dict[str, Callable[[], object]]]


def ours(path: Path, threads: int, ids: list[int]) -> dict[str, Callable[[], object]]:
    session = Session(load_model(path), n_ctx=256, threads=threads)

    def decode() -> None:
        session.truncate(0)
        session.eval(ids[:START])
        for token in ids[START : START + STEPS]:
            session.eval([token])

    def start() -> None:
        session.truncate(0)
        session.eval(ids[:START])

    def prompt() -> None:
        session.truncate(0)
        session.eval(ids)

    return {"decode": decode, "start": start, "prompt": prompt}


def theirs(path: Path, threads: int, ids: list[int]) -> dict[str, Callable[[], object]]:
    import llama_cpp

    sizes = {"n_ctx": 256, "n_batch": PROMPT, "n_ubatch": PROMPT}
    sizes |= {"n_threads": threads, "n_threads_batch": threads}
    model = llama_cpp.Llama(str(path), **sizes, verbose=False, logits_all=False)

    def run(tokens: list[int], position: int) -> None:
        if position == 0:
            model._ctx.kv_cache_clear()
        model._batch.set_batch(batch=tokens, n_past=position, logits_all=False)
        model._ctx.decode(model._batch)

    def decode() -> None:
        run(ids[:START], 0)
        for k in range(STEPS):
            run([ids[START + k]], START + k)

    return {
        "decode": decode,
        "start": lambda: run(ids[:START], 0),
        "prompt": lambda: run(ids, 0),
    }


def rates(sides: Sides, rounds: int) -> dict[str, dict[str, float]]:
    """Tokens per second of each side, decoding and reading a prompt."""
    calls = {(name, what): f for name, runs in sides.items() for what, f in runs.items()}
    named = {f"{name}|{what}": f for (name, what), f in calls.items()}
    seconds = in_turn(named, rounds, pause_s=PAUSE_S)
    return {
        name: {
            "decode": STEPS / (seconds[f"{name}|decode"] - seconds[f"{name}|start"]),
            "prompt": PROMPT / seconds[f"{name}|prompt"],
        }
        for name in sides
    }


def has_llama_cpp() -> bool:
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        return False
    return True


def main() -> None:
    source, rounds = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 15
    compares = has_llama_cpp()
    other = "llama_cpp here" if compares else "llama.cpp's figure"
    print(f"{source.name}, {rounds} rounds, medians; tokens per second, ratio to {other}")
    print(f"{'type':6} {'threads':>7} {'decode':>9} {'prompt':>9}   ratios")
    with tempfile.TemporaryDirectory() as folder:
        for name in TYPES:
            path = Path(folder) / f"{name}.gguf"
            kind = "Q4_K_S" if name == "Q4_K" else name
            quantize_model(source, path, kind, allow_requantize=True, is_pure=True)
            n_vocab = load_model(path).sizes.n_vocab
            ids = np.random.default_rng(0).integers(3, n_vocab, PROMPT).tolist()
            for threads in (1, 2):
                sides: Sides = {"yupana": ours(path, threads, ids)}
                if compares:
                    sides["llama.cpp"] = theirs(path, threads, ids)
                found = rates(sides, rounds)
                report(name, threads, found)
            path.unlink()


def report(name: str, threads: int, found: dict[str, dict[str, float]]) -> None:
    mine, ratios = found["yupana"], []
    for what in ("decode", "prompt"):
        known = found["llama.cpp"][what] if "llama.cpp" in found else KNOWN[what].get(name)
        if known and (threads == 1 or "llama.cpp" in found):
            ratios.append(f"{what} {mine[what] / known:.2f}x of {known:.0f}")
    line = f"{name:6} {threads:7} {mine['decode']:9.0f} {mine['prompt']:9.0f}   "
    print(line + ", ".join(ratios), flush=True)


if __name__ == "__main__":
    main()
