"""Token ids of random texts, the same as llama.cpp's own; skipped without llama-cpp-python."""

import ctypes
import random
from pathlib import Path

import pytest

import yupana as yp
from yupana.models.formats import GgufFile, write_gguf
from yupana.models.tokenizer_kinds import KINDS

llama_cpp = pytest.importorskip("llama_cpp")
DATA = Path(__file__).parents[2] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared vocabularies")
# Words, digits, marks, scripts, white space of all kinds, and what looks like special tokens.
ALPHABETS = [
    "abcXYZ 'sdt\n", "0123456789 ,.", " \t\n\r\u00a0\u2003\u3000\u200d", "éßñÅœ\u0301\u0308",
    "\u0430\u0431\u0432\u0413", "\u05d0\u05d1\u0627\u0644\u0639", "\u0915\u094d\u0924\u093e\u0966",
    "\u0e01\u0e32\u0e46", "\u6f22\u5b57\u304b\u306a\u30ab", "\ud55c\uad6d",
    "\U0001f999\u2705\u20ac", "!?-_=+<>|/\\()[]{}@#$%^&*~`\"",
]  # fmt: skip
WORDS = ["<s>", "</s>", "<|endoftext|>", "<fim_prefix>", "<0x41>", "don't", "WE'LL", "▁", " "]


def texts(count, seed):
    draw = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(draw.randrange(1, 9)):
            if draw.random() < 0.15:
                parts.append(draw.choice(WORDS))
            else:
                parts.append("".join(draw.choices(draw.choice(ALPHABETS), k=draw.randrange(1, 9))))
        yield "".join(parts)


@llama_cpp.llama_log_callback
def silent(level, text, data):
    """llama.cpp logs from C, past what pytest captures."""


def compare(path, count, seed):
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    ours = yp.load_tokenizer(path)
    try:
        theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    except ValueError:
        pytest.skip("the llama.cpp that is installed does not know it")
    for text in texts(count, seed):
        for special in (True, False):
            want = theirs.tokenize(text.encode(), add_bos=False, special=special)
            assert ours.encode(text, add_special=False, parse_special=special) == want, repr(text)
    assert ours.encode("ab") == theirs.tokenize(b"ab", add_bos=True)
    theirs.close()


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "starcoder"])
def test_vocabularies(name):
    compare(DATA / f"ggml-vocab-{name}.gguf", 400, seed=1)


@pytest.mark.parametrize("name", [kind.names[0] for kind in KINDS])
def test_ways_to_split(tmp_path, name):
    with GgufFile(DATA / "ggml-vocab-starcoder.gguf") as file:
        entries = file.metadata.typed() | {"tokenizer.ggml.pre": name}
        write_gguf(tmp_path / "v.gguf", entries, {})
    compare(tmp_path / "v.gguf", 60, seed=len(name))
