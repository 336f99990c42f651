"""Grammars made of JSON schemas: which values they take, and that a text drawn has the form."""

import json
import re

import numpy as np
import pytest

from tests.command_line import call
from tests.test_grammar import TOKENIZER, follows
from yupana.graphlib.errors import DataError
from yupana.models.grammar import Grammar
from yupana.models.json_schema import schema_grammar
from yupana.models.sampling import RandomStream, Sampler, Sampling

PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 4},
        "born": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"enum": ["a", 'b"', None]}, "maxItems": 2},
        "friend": {"$ref": "#"},
    },
    "required": ["tags", "name"],
}
# A schema, values of its form, and values that are not.
CASES = [
    (
        PERSON,
        [
            {"name": "Ada", "tags": []},
            {"name": "Ada", "tags": ["a", 'b"'], "born": "1815-12-10"},
            {"name": "A", "tags": [None], "friend": {"name": "B", "tags": []}},
        ],
        [
            {"tags": []},
            {"name": "", "tags": []},
            {"name": "A", "tags": ["c"]},
            {"name": "A", "tags": ["a", "a", "a"]},
            {"name": "A", "tags": [], "more": 1},
            {"name": "A", "tags": [], "born": "1815-13-10"},
        ],
    ),
    ({"type": ["integer", "boolean"]}, [0, -12, True], [1.5, "1", None, [1]]),
    ({"anyOf": [{"const": "x"}, {"type": "number"}]}, ["x", 1.5e-7, 3], ["y", None]),
    ({"type": "array", "minItems": 1}, [[1], [{}, "a", [[]]]], [[], 1]),
    ({"items": {"type": "null"}, "minItems": 2, "maxItems": 3}, [[None] * 2, [None] * 3], [[None]]),
    (
        {"prefixItems": [{"type": "null"}, {"type": "integer"}], "items": {"type": "string"}},
        [[None, 1], [None, 2, "a", "b"]],
        [[None], [1, 1], [None, 2, 3]],
    ),
    ({"prefixItems": [{"const": 1}], "items": False}, [[1]], [[], [1, 1]]),
    ({"type": "array", "maxItems": 0}, [[]], [[1]]),
    ({"type": "object", "additionalProperties": {"type": "null"}}, [{}, {"a": None}], [{"a": 1}]),
    (
        {"properties": {"a": {}, "b": {}}, "additionalProperties": True},
        [{}, {"a": 1}, {"b": 2, "z": 3}, {"a": [], "b": {}, "y": 1, "z": 2}],
        [[], 1],
    ),
    ({"$ref": "#/$defs/x/1", "$defs": {"x": [1, {"const": "k\n\\"}]}}, ["k\n\\"], ["kn", {}]),
    ({}, [1, "a", {"b": [None, True]}], []),
]


@pytest.mark.parametrize(("schema", "good", "bad"), CASES)
def test_values_of_the_form_and_no_others_fit(schema, good, bad):
    grammar = schema_grammar(schema)

    def is_taken(value):
        texts = (json.dumps(value, ensure_ascii=False), json.dumps(value, separators=(",", ":")))
        found = {follows(text, grammar)[1] for text in texts}
        assert len(found) == 1
        return found.pop()

    if schema is PERSON:  # the required ones come first, in the order of the schema
        good = [{"name": v["name"], "tags": v["tags"], **v} for v in good]
    assert all(map(is_taken, good))
    assert not any(map(is_taken, bad))


def test_what_is_drawn_has_the_form():
    random = np.random.default_rng(2)
    grammar, stream = Grammar(schema_grammar(PERSON)), RandomStream(4)
    for _ in range(5):
        sampler, ids = Sampler(Sampling(temp=1), TOKENIZER, grammar=grammar), []
        while not ids or ids[-1] not in TOKENIZER.ends:
            scores = random.normal(size=len(TOKENIZER)) * 3
            for likely in '"}]':
                scores[TOKENIZER.encode(likely, add_special=False)] += len(ids) / 2
            scores[min(TOKENIZER.ends)] += len(ids)
            ids.append(sampler.pick(scores, stream))
            sampler.accept(ids[-1])
        value = json.loads(TOKENIZER.decode(ids))
        assert 1 <= len(value["name"]) <= 4
        assert set(value) <= {"name", "tags", "born", "friend"}
        assert len(value["tags"]) <= 2
        assert set(value["tags"]) <= {"a", 'b"', None}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (1, "#: got 1, want an object or true"),
        ({"type": "number", "minimum": 3}, "got 'minimum', want only what"),
        ({"type": "text"}, "got 'text', want one of object"),
        ({"properties": {"a": {"pattern": "a+"}}}, "#/properties/a: got 'pattern'"),
        ({"type": "object", "properties": {}, "required": ["x"]}, "required ['x']"),
        ({"enum": []}, "want a list, not empty"),
        ({"minLength": 3, "maxLength": 2}, "maxLength: got 2, want at least minLength 3"),
        ({"type": "array", "minItems": -1}, "minItems: got -1, want a whole number from 0"),
        ({"format": "email"}, "format: got 'email', want one of ['date', "),
        ({"$ref": "#/$defs/x"}, "want a place in this schema"),
        ({"$ref": "http://example.org/x"}, "want a place in this schema"),
        ({"prefixItems": [{}], "items": False, "minItems": 2}, "want at most 1"),
    ],
)
def test_what_no_grammar_is_made_of_is_refused(schema, words):
    with pytest.raises(DataError, match=re.escape(words)):
        schema_grammar(schema)


def test_schemas_at_the_command_line(capsys, tmp_path):
    path = tmp_path / "m.gguf"
    train = ["pretrain", "--train-data", __file__, "--model-out", str(path), "--adam-iter", "1"]
    sizes = ["--embd", "8", "--head", "1", "--layer", "1", "--ff", "8", "--vocab", "bytes"]
    assert call(capsys, *train, *sizes, "--ctx", "64", "--threads", "1")[0] == 0
    schema = '{"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}'
    (tmp_path / "s.json").write_text(schema)
    plain = ["generate", str(path), "-t", "1", "-n", "150", "--no-display-prompt", "-p", "x"]
    for flags in (["-j", schema], ["--json-schema-file", str(tmp_path / "s.json")]):
        code, out, _ = call(capsys, *plain, *flags)
        assert code == 0
        assert len(json.loads(out)) == 2
    code, _, err = call(capsys, *plain, "-j", "[")
    assert (code, "got no JSON" in err) == (1, True)
    code, _, err = call(capsys, *plain, "-j", schema, "--grammar", 'root ::= "a"')
    assert code
    assert "grammar and json_schema" in err
