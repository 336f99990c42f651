"""Grammars: what they match, beside Python's own patterns, and how they lead a text."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yupana.graphlib.errors import DataError, SettingError
from yupana.models.grammar import Grammar
from yupana.models.grammar_bytes import byte_sequences, outside
from yupana.models.grammar_filter import GrammarFilter
from yupana.models.sampling import RandomStream, Sampler, Sampling
from yupana.models.tokenizer import read_tokenizer
from yupana.models.vocabulary import Vocabulary
from yupana.models.vocabulary_gguf import vocabulary_metadata

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws (
    value  # one at least, or none
    ("," ws value)*
  )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= "-"? ([0-9] | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws     ::= | " " | "\n" [ \t]{0,3}
"""
WORDS = '{"name": [1, 2.5e-3, "λόγος"], "other": {"yes": true, "no": null}} ' * 20
TOKENIZER = read_tokenizer(vocabulary_metadata(Vocabulary.train(WORDS, 330)))
END = min(TOKENIZER.ends)


def follows(text, grammar):
    """Whether texts of a grammar begin with this one, and whether it may end there."""
    found = GrammarFilter(Grammar(grammar), TOKENIZER)
    for token in TOKENIZER.encode(text, add_special=False):
        if not found.allows(token):
            return False, False
        found.accept(token)
    return True, found.allows(END)


# Rules, and Python's pattern of the same texts.
SAME = [
    ('root ::= "ab"* | "c" [a-c]?', "(?:ab)*|c[a-c]?"),
    ('root ::= a{2} b{1,2} [c]{2,}\na ::= "a"\nb ::= "b" | "c"', "aa(?:b|c){1,2}c{2,}"),
    ('root ::= ([^a-b]? "a")+ "b"{0,1}', "(?:[^a-b]?a)+b?"),
    ('root ::= x\nx ::= "a" | "b" x "c"', "b{0}a|bac|bbacc|bbbaccc"),
    ('root ::= ("a"* "b"*)* "c" | ""', "(?:a*b*)*c|"),
    (r'root ::= [\x61-\u0062] . "c"?', "[ab].c?"),
    ('root ::= "λ" [α-γ-] # Greek\n\n', "λ[α-γ-]"),
]


@pytest.mark.parametrize(("grammar", "pattern"), SAME)
def test_texts_are_those_of_the_pattern(grammar, pattern):
    @given(st.text("abcλα-", max_size=7))
    def check(text):
        begins, is_whole = follows(text, grammar)
        assert is_whole == bool(re.fullmatch(pattern, text))
        assert begins or not is_whole

    check()


@given(st.lists(st.tuples(*[st.integers(0, 0x10FFFF)] * 2).map(sorted).map(tuple), max_size=4))
def test_bytes_are_those_of_the_characters(ranges):
    inside, out = byte_sequences(ranges), byte_sequences(outside(ranges))

    def has(sequences, raw):
        fits = (s for s in sequences if len(s) == len(raw))
        return any(all(m >> b & 1 for m, b in zip(s, raw, strict=True)) for s in fits)

    near = {code + by for pair in ranges for code in pair for by in (-1, 0, 1)} | {0x7F, 0x800}
    for code in near:
        if 0 <= code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF:
            is_inside = any(low <= code <= high for low, high in ranges)
            assert has(inside, chr(code).encode()) == is_inside
            assert has(out, chr(code).encode()) != is_inside


@pytest.mark.parametrize("temp", [0.0, 1.0])
def test_whatever_the_scores_the_text_is_json(temp):
    random = np.random.default_rng(int(temp))
    for _ in range(6):
        sampler = Sampler(Sampling(temp=temp), TOKENIZER, grammar=Grammar(JSON))
        stream, ids = RandomStream(3), []
        while not ids or ids[-1] not in TOKENIZER.ends:
            scores = random.normal(size=len(TOKENIZER)) * 4
            if len(ids) > 30:  # enough: what ends things is likely
                for likely in '"}]:1':
                    scores[TOKENIZER.encode(likely, add_special=False)] += 40
                scores[END] += 80
            ids.append(sampler.pick(scores, stream))
            sampler.accept(ids[-1])
        json.loads(TOKENIZER.decode(ids))


def test_the_masks_are_what_each_token_is_told():
    found = GrammarFilter(Grammar(JSON), TOKENIZER)
    for token in TOKENIZER.encode('{"na', add_special=False):
        each = [found.allows(k) for k in range(len(TOKENIZER))]
        assert found.allowed().tolist() == each
        assert 0 < sum(each) < len(each)
        found.accept(token)


def test_what_is_remembered_is_bounded_and_changes_nothing(monkeypatch):
    rules = Grammar('root ::= some\nsome ::= ("(" some ")" | "[" some "]" | [a-d]{0,3} ",")*')
    usual, rng, depth, text = GrammarFilter(rules, TOKENIZER), np.random.default_rng(3), 0, []
    for _ in range(600):
        allowed = usual.allowed()
        fitting = [t for t in np.flatnonzero(allowed) if t != END or depth == 0]
        deeper = [t for t in fitting if TOKENIZER.raw(t) in (b"(", b"[")]
        token = int(rng.choice(deeper if deeper and depth < 6 and rng.random() < 0.4 else fitting))
        piece = TOKENIZER.raw(token)
        depth += sum(map(piece.count, (b"(", b"["))) - sum(map(piece.count, (b")", b"]")))
        text.append((allowed, token))
        usual.accept(token)

    for name, most in {"_MOST_MASKS": 3, "_MOST_STEPS": 40, "_MOST_STACKS": 30}.items():
        monkeypatch.setattr(f"yupana.models.grammar_filter.{name}", most)
    bounded, sizes = GrammarFilter(rules, TOKENIZER), []
    for allowed, token in text:
        np.testing.assert_array_equal(bounded.allowed(), allowed)
        bounded.accept(token)
        sizes.append((len(bounded._masks), len(bounded._steps), len(bounded._stacks)))
    masks, steps, stacks = (max(some) for some in zip(*sizes, strict=True))
    assert masks <= 3
    assert steps <= 40
    assert stacks < 200 < len(usual._stacks)


def test_what_fits_is_drawn_as_without_a_grammar():
    scores = np.linspace(0, 3, len(TOKENIZER))
    plain = Sampler(Sampling(top_k=0), TOKENIZER)
    ruled = Sampler(Sampling(top_k=0), TOKENIZER, grammar=Grammar("root ::= .* | .* .*"))
    streams = RandomStream(5), RandomStream(5)
    fits = GrammarFilter(Grammar("root ::= .*"), TOKENIZER).allowed()
    for _ in range(50):
        token = plain.pick(scores, streams[0])
        if not fits[token]:
            break
        assert ruled.pick(scores, streams[1]) == token
        ruled.accept(token)


def test_what_is_given_begins_the_grammar_anew():
    sampler = Sampler(Sampling(temp=0), TOKENIZER, grammar=Grammar('root ::= "1" "2"'))
    one, two = (TOKENIZER.encode(digit, add_special=False)[0] for digit in "12")
    scores = np.zeros(len(TOKENIZER))
    drawn = []
    for given_token in (None, None, None, two):
        if given_token is not None:
            sampler.accept(given_token)
        drawn.append(sampler.pick(scores, RandomStream(0)))
        sampler.accept(drawn[-1])
    assert drawn == [one, two, END, one]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "got rules [], want a rule called 'root'"),
        ('roof ::= "a"', "want a rule called 'root'"),
        ('root ::= "a', "line 1, column 12: got 'the end'"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1: got a rule that is defined above"),
        ("root ::= a", "line 1, column 10: got 'a', which is not"),
        ("root ::= [b-a]", "a range that goes up"),
        ('root ::= "a" | * "b"', "something before it that is repeated"),
        ('root ::= "a"{3,2}', "the second not below the first"),
        ('root ::= "a"{9999}', "numbers up to 2000"),
        (r'root ::= "\q"', "want an escape"),
        (r'root ::= "\uD800"', "a character of Unicode"),
        ('root ::= ("a" "b"', "want ')'"),
        ('root = "a"', "want '::='"),
        ('root ::= "a" )', "the end of the line"),
        ('root ::= root "a" | "b"', "rule 'root' begins with itself"),
        ('root ::= a "x"\na ::= ""? b\nb ::= root "y" | "z"', "begins with itself"),
    ],
)
def test_what_is_no_grammar_is_refused(text, words):
    with pytest.raises(DataError, match=re.escape(words)):
        Grammar(text)


def test_bytes_that_no_token_has_are_told():
    only_letters = read_tokenizer(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": ["a", "b"],
            "tokenizer.ggml.merges": [],
        }
    )
    found = GrammarFilter(Grammar('root ::= "a" "c"'), only_letters)
    found.accept(0)
    with pytest.raises(SettingError, match="0x63"):
        found.allowed()
    with pytest.raises(SettingError, match="want one that can come next"):
        found.accept(0)
    with pytest.raises(SettingError, match="no tokenizer"):
        Sampler(grammar=Grammar('root ::= "a"'))
