"""Forms of JSON data that others use: arrays, Alpaca's, ShareGPT's; read in little memory."""

import json
import tracemalloc

import pytest

from tests.test_samples import BYTES, shown
from yupana.graphlib.errors import DataError
from yupana.train import text
from yupana.train.corpus import Codec
from yupana.train.forms import read_entry
from yupana.train.samples import DataRules, read_corpus, read_texts

ENTRIES = [
    {"text": "all"},
    {"prompt": "a b", "completion": " c"},
    {"prompt": "q,", "response": "]r"},
    {"instruction": "do", "output": "done"},
    {"instruction": "do", "input": "it", "output": "done"},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
]


def chat(messages, opens):
    text = "".join(f"<{m['role'][0]}>{m['content']};" for m in messages)
    return text + ("<a>" if opens else "")


def answers_of(entry, template=None, **more):
    got = read_entry(entry, template, **more)
    return got.text, got.answers and [got.text[a:b] for a, b in got.answers]


@pytest.mark.parametrize(
    ("entry", "template", "whole", "answer"),
    [
        ({"prompt": "q: ", "response": "r"}, None, "q: r", ["r"]),
        ({"prompt": "q: ", "completion": "c", "response": "r"}, None, "q: c", ["c"]),
        (ENTRIES[4], chat, "<u>do\n\nit;<a>done;", ["done;"]),
        ({**ENTRIES[4], "input": ""}, chat, "<u>do;<a>done;", ["done;"]),
        ({**ENTRIES[4], "input": None}, chat, "<u>do;<a>done;", ["done;"]),
        ({**ENTRIES[4], "text": "as of tatsu-lab"}, chat, "<u>do\n\nit;<a>done;", ["done;"]),
        (ENTRIES[5], chat, "<u>hi;<a>ho;", ["ho;"]),
        ({**ENTRIES[5], "system": "be"}, chat, "<s>be;<u>hi;<a>ho;", ["ho;"]),
        ({"conversations": [{"role": "user", "content": "x"}]}, chat, "<u>x;", []),
    ],
)
def test_forms_and_what_is_learned_of_them(entry, template, whole, answer):
    assert answers_of(entry, template) == (whole, answer)
    assert answers_of(entry, template, all_learned=True) == (whole, None)


def test_alpacas_own_prompt_where_there_is_no_template():
    with_input, answer = answers_of(ENTRIES[4])
    assert answer == ["done"]
    assert with_input == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\ndo\n\n### Input:\nit\n\n### Response:done"
    )
    without, answer = answers_of(ENTRIES[3])
    assert without.endswith("the request.\n\n### Instruction:\ndo\n\n### Response:done")
    assert "### Input" not in without
    assert read_entry(ENTRIES[3]).has_end


@pytest.mark.parametrize("dump", [{}, {"indent": 2}, {"separators": (",", ":")}])
@pytest.mark.parametrize("block", [1, 3, 1000])
def test_an_array_is_the_same_as_lines(tmp_path, dump, block, monkeypatch):
    monkeypatch.setattr(text, "_BLOCK", block)
    lines, array = tmp_path / "d.jsonl", tmp_path / "d.json"
    lines.write_text("\n".join(map(json.dumps, ENTRIES)))
    array.write_text("\ufeff \n" + json.dumps(ENTRIES, **dump) + "\n\n", encoding="utf-8")
    codec = Codec(BYTES.encode, None, BYTES.eos, 1)
    want, got = (read_corpus(path, codec, DataRules(), 400, chat) for path in (lines, array))
    assert shown(got) == shown(want)
    assert len(got.limits) == len(ENTRIES)
    assert got.hash == want.hash
    assert [*read_texts(array, chat)] == [*read_texts(lines, chat)]


def test_lines_in_a_file_called_json_are_still_read(tmp_path):
    (tmp_path / "d.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert [*read_texts(tmp_path / "d.json")] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "not JSON: got '', want an array of objects"),
        ("[]", "got an empty file, want"),
        ('[{"text": "a"}', "not JSON: got '', want ',' in an array"),
        ('[{"text": "a"} {"text": "b"}]', "got '{\"text\": \"b\"}]', want ',' in an array"),
        ('[{"text": "a"},]', "not JSON: got ']', want an array of objects"),
        ('[{"text": "a"},, 3]', "not JSON: got ', 3]'"),
        ('[{"text": "a"}] more', "not JSON: got 'more', want nothing behind the array"),
        ('[{"text": "a"}, {"text": 5}]', "entry 2: text: got int, want a string"),
        ('[{"text": "a"}, 7]', "entry 2: got int, want an object"),
        ('[{"text": "a"}, {"words": 5}]', r"entry 2: no known form: got keys \['words'\]"),
        ('[{"text": "a"}, {"text: 5}]', "not JSON: got '{\"text: 5}]'"),
    ],
)
def test_a_bad_array_is_named(tmp_path, content, words):
    path = tmp_path / "d.json"
    path.write_text(content)
    with pytest.raises(DataError, match=words) as caught:
        read_corpus(path, BYTES, DataRules(), 8)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([{"from": "robot", "value": "x"}], "from of turn 1: got 'robot', want one of human"),
        ([{"from": 3, "value": "x"}], "from of turn 1: got 3"),
        ([{"from": "human"}], "value of turn 1: got none, want a string"),
        ([{"from": "human", "value": 4}], "content of message 1: got int, want a string"),
        ("hello", "messages: got something else"),
    ],
)
def test_bad_conversations_are_named(turns, words):
    with pytest.raises(DataError, match=words):
        read_entry({"conversations": turns}, chat)


def test_memory_does_not_grow_with_an_array(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_BLOCK", 1 << 12)
    path, peaks = tmp_path / "d.json", []
    for n in (500, 8000):
        path.write_text(json.dumps([{"text": "a llama eats grass " * 9}] * n))
        tracemalloc.start()
        assert sum(1 for _ in read_texts(path)) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 10_000
