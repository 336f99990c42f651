"""Splitting before BPE, against the models' own expressions run by the `tokenizers` package."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from yupana.graphlib.errors import FileFormatError
from yupana.models.tokenizer_kinds import KINDS
from yupana.models.tokenizer_split import splitter

NAMES = [name for kind in KINDS for name in kind.names]
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGN = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
# Expressions of the models' tokenizer.json, each cutting what the one before has left.
OWN = {
    "gpt-2": [_GPT2],
    "starcoder": [r"\p{N}", _GPT2],
    "falcon": [r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]"],
    "llama-bpe": [rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"],
    "qwen2": [rf"{_SUFFIX}|{_WORD}|\p{{N}}|{_REST}"],
    "qwen35": [
        rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
        r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        _SIGN + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    "deepseek-coder": [
        r"[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        r"\p{N}",
    ],
    "bailingmoe": [
        rf"'(?i:[sdmt]|ll|ve|re)|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    ],
    "seed-coder": [
        rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "chameleon": [
        "<sentinel:[0-9]+>",
        "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        "([\\t\\n]|    |  )",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        _GPT2,
    ],
}
# Of each class and beyond ASCII: letters, numbers, marks, symbols, spaces, a control character.
ALPHABET = "aZé中я०½3'\"sSlLv.,-~$+€ \t\n\r\u00a0\u3000\u0301\u200b_()🦙"


def split_by_engine(expressions, text):
    steps = [pre_tokenizers.Split(Regex(e), "isolated") for e in expressions]
    found = pre_tokenizers.Sequence(steps).pre_tokenize_str(text)
    return [word for word, _ in found]


@pytest.mark.parametrize("name", OWN)
@given(text=st.text(ALPHABET, max_size=24))
def test_words_are_those_of_the_models_own_expression(name, text):
    if name == "deepseek-coder":  # its range of Asian letters has this space in it, but
        text = text.replace("\u3000", "")  # llama.cpp sees white space as such
    assert list(splitter(name).split(text)) == split_by_engine(OWN[name], text)


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(max_size=40))
def test_every_kind_keeps_the_whole_text(name, text):
    words = list(splitter(name).split(text))
    assert "".join(words) == text
    assert "" not in words


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("default", "I've 1234567 $5.", ["I", "'", "ve", " ", "123", "456", "7", " ", "$"]),
        ("gpt-4o", "camelCase isn't", ["camel", "Case", " isn't"]),
        ("tekken", "camelCase 12", ["camel", "Case", " ", "1", "2"]),
        ("superbpe", "a 1234567 b", ["a ", "1", "234", "567", " b"]),
        ("tiny_aya", "1234567", ["1", "234", "567"]),
        ("tiny_aya", "   1034 | 5", ["  ", " ", "1", "034", " |", " ", "5"]),
        ("afmoe", "   103", ["  ", " ", "103"]),
        ("afmoe", "12 ๆ漢", ["12", " ", "ๆ漢"]),
        ("bloom", "Yes, no|you(a)", ["Yes", ",", " no", "|", "you", "(", "a", ")"]),
        ("viking", "a 42", ["a", " ", "4", "2"]),
        ("laguna", "a\n\nb  c", ["a", "\n\n", "b", " ", " c"]),
        ("minicpm5", "12345", ["123", "45"]),
        ("jais-2", "a" + " " * 7 + "b", ["a", " " * 4, " " * 2, " b"]),
        ("exaone-moe", "one two 3", ["one two", " ", "3"]),
        ("deepseek-llm", "ab 漢字 12\n", ["ab", " ", "漢字", " ", "12", "\n"]),
        ("youtu", "漢字ab。", ["漢字", "ab", "。"]),
        ("spark2_5", "ab.\n12", ["ab", ".", "\n", "1", "2"]),
        ("granite-embed-multi-97m", "ก้าว1", ["ก้าว", "1"]),
        ("ufakzeka", "Ali'de", ["Ali", "'de"]),
        ("poro-chat", "hei vain!", ["hei", " vain", "!"]),
        ("chameleon", "a<sentinel:12>IMGIMGABZ", ["a", "<", "sentinel", ":", "1", "2", ">"]),
    ],
)
def test_kinds_cut_where_their_expressions_say(name, text, words):
    found = list(splitter(name).split(text))
    assert found[: len(words)] == words


def test_names_are_given_once_and_unknown_ones_listed():
    assert len(set(NAMES)) == len(NAMES) > 80
    with pytest.raises(FileFormatError, match=r"got 'gpt-5'.*want one of .*gpt-2, .*qwen2"):
        splitter("gpt-5")
