"""From files to samples: plain text by finetune's rules, JSON lines, what is learned of them."""

import json
import tracemalloc

import numpy as np
import pytest

from yupana.graphlib.errors import DataError, SettingError
from yupana.models.vocabulary import Vocabulary
from yupana.train.corpus import Codec, make_corpus
from yupana.train.samples import DataRules, read_corpus, read_texts, text_corpus

BYTES = Codec.of(Vocabulary.from_bytes())
EOS = BYTES.eos


def shown(corpus):
    """Samples as text: what is not learned in capitals, EOS as a bar."""

    def letter(k):
        letter = "|" if k in (EOS, ~EOS) else chr(max(k, ~k))
        return letter if k >= 0 else letter.upper()

    return [
        "".join(letter(k) for k in corpus.ids[begin:end].tolist()) for begin, end in corpus.limits
    ]


def of_text(text, n_ctx=8, **rules):
    codec = Codec(BYTES.encode, None, EOS, longest=1)
    return text_corpus([text], codec, DataRules(**rules), n_ctx)


def test_text_without_sample_starts_is_one_stream():
    corpus = of_text("one text")
    assert corpus.is_stream
    assert shown(corpus) == ["one text"]


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ({}, ["ab|", "cdefghijk|", "l|"]),
        ({"include_sample_start": True}, ["##ab|", "##cdefghijk|", "##|", "##l|"]),
        ({"fill_with_next_samples": True}, ["ab", "cdefghijk"]),
        ({"fill_with_next_samples": True, "separate_with_eos": True}, ["ab|", "cdefghijk|", "l|"]),
        ({"overlapping_samples": True}, ["ab##cdef", "cdefghij", "##l"]),
    ],
)
def test_sample_starts(rules, wanted):
    corpus = of_text("left out##ab##cdefghijk####l", sample_start="##", **rules)
    assert not corpus.is_stream
    assert shown(corpus) == wanted


def test_samples_are_counted_as_finetune_does():
    corpus = of_text("#ab#cdefghijk##l", sample_start="#")
    c = corpus.counts
    assert (c.n_long, c.n_short, c.n_empty, c.n_silent, c.least, c.most) == (1, 2, 1, 0, 2, 10)
    lines = c.lines(8)
    assert lines[0] == "1 sample longer than the context of 8 (up to 10), cut off"
    assert len(lines) == 3


def test_escaped_sample_starts():
    assert shown(of_text("a\n\nbc", sample_start=r"\n\n", escape=True)) == ["bc|"]
    with pytest.raises(DataError, match=r"sample_start: got '\\\\n\\\\n'.*escape"):
        of_text("a\n\nbc", sample_start=r"\n\n")


def test_rules_that_do_not_go_together_are_refused():
    with pytest.raises(SettingError, match="overlapping_samples: got no sample_start"):
        of_text("abc", overlapping_samples=True)
    with pytest.raises(SettingError, match="validation is out of range: got 1"):
        of_text("abc", validation=1)


def test_data_with_nothing_to_learn_are_refused():
    with pytest.raises(DataError, match="got 1 empty samples"):
        of_text("#", sample_start="#")
    with pytest.raises(DataError, match="1 without an answer within the context of 4"):
        make_corpus([([~1, ~2, ~3, ~4, ~5, 6], True)], 4, has_bos=False)
    assert make_corpus([([~1, ~2, ~3, ~4, 5], True)], 4, has_bos=False).counts.n_silent == 0
    with pytest.raises(DataError, match="1 without"):  # BOS moves it out of reach
        make_corpus([([~1, ~2, ~3, ~4, 5], True)], 4, has_bos=True)
    with pytest.raises(DataError, match="1 without"):  # what comes first is nobody's target
        make_corpus([([5], True)], 4, has_bos=False)


def chat(messages, opens):
    """A chat template of few letters."""
    text = "".join(f"<{m['role'][0]}>{m['content']};" for m in messages)
    return text + ("<a>" if opens else "")


LINES = [
    {"text": "plain"},
    {"prompt": "in ", "completion": "out"},
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "why"},
            {"role": "assistant", "content": "so"},
        ]
    },
]


def write(path, lines):
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return path


def test_only_answers_of_json_lines_are_learned(tmp_path):
    path = write(tmp_path / "d.jsonl", LINES)
    corpus = read_corpus(path, BYTES, DataRules(), 64, chat)
    assert shown(corpus) == ["plain|", "IN out|", "<S>S;<U>HI;<A>yes;<U>WHY;<A>so;|"]
    everything = read_corpus(path, BYTES, DataRules(train_on_prompt=True), 64, chat)
    assert shown(everything) == ["plain|", "in out|", "<s>s;<u>hi;<a>yes;<u>why;<a>so;|"]
    controls = Codec(BYTES.encode, None, EOS, longest=1)  # of which the template writes its own end
    assert shown(read_corpus(path, controls, DataRules(), 64, chat))[2].endswith("<A>so;")
    assert [*read_texts(path, chat)] == [
        "plain",
        "in out",
        "<s>s;<u>hi;<a>yes;<u>why;<a>so;",
    ]


def test_a_token_across_the_beginning_of_an_answer_belongs_to_it(tmp_path):
    def pairs(text, special):  # of letters, and the last alone
        return [ord(text[k]) for k in range(0, len(text), 2)]

    path = write(tmp_path / "d.jsonl", [{"prompt": "abc", "completion": "def"}])
    corpus = read_corpus(path, Codec(pairs, None, None, 2), DataRules(), 8)
    assert shown(corpus) == ["Ace"] or shown(corpus) == ["ACe"]
    path = write(tmp_path / "d.jsonl", [{"prompt": "a b", "completion": "c"}])
    words = Vocabulary.train("ab bc abc " * 20, 280)
    corpus = read_corpus(path, Codec.of(words), DataRules(), 8)
    learned = corpus.ids[corpus.ids >= 0]
    assert words.decode(learned) in ("bc", " bc", "c")
    assert len(learned) == 2  # and the end


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a"', r"line 2: not JSON at column 13: got '\{\"text\": \"a\"'"),
        ("[1]", "line 2: got list, want an object"),
        ('{"words": 1}', r"line 2: no known form: got keys \['words'\]"),
        ('{"text": 1}', "line 2: text: got int, want a string"),
        ('{"prompt": "a", "completion": null}', "line 2: completion: got NoneType"),
        ('{"messages": "a"}', "line 2: messages: got something else"),
        ('{"messages": [{"content": "a"}]}', "line 2: messages: got something else"),
        ('{"messages": [{"role": "user"}]}', "content of message 1: got none, want a string"),
        ('{"messages": [{"role": "user", "content": 5}]}', "content of message 1: got int"),
        ('{"messages": []}', "no chat template|want a chat template"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path, line, words):
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    template = None if "[]" in line else chat
    with pytest.raises(DataError, match=words) as caught:
        read_corpus(path, BYTES, DataRules(), 8, template)
    assert str(path) in str(caught.value)


def test_other_bad_json_files(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xf1"}\n')
    with pytest.raises(DataError, match=r"byte 0xf1 at byte 24 \(line 2\)"):
        read_corpus(path, BYTES, DataRules(), 8)
    path.write_text("\n\n")
    with pytest.raises(DataError, match="empty file, want lines of JSON"):
        read_corpus(path, BYTES, DataRules(), 8)
    write(path, LINES[:1])
    with pytest.raises(SettingError, match="its entries are the samples"):
        read_corpus(path, BYTES, DataRules(sample_start="#"), 8)


def test_a_template_that_rewrites_what_was_said_is_refused(tmp_path):
    def forgetful(messages, opens):
        return chat(messages[-1:], opens)

    path = write(tmp_path / "d.jsonl", LINES[2:])
    with pytest.raises(DataError, match=r"line 1: .*message 3 differently.*train_on_prompt"):
        read_corpus(path, BYTES, DataRules(), 8, forgetful)
    rules = DataRules(train_on_prompt=True)
    assert shown(read_corpus(path, BYTES, rules, 8, forgetful)) == ["<a>so;|"]


@pytest.mark.parametrize(("suffix", "start"), [("txt", "#"), ("txt", ""), ("jsonl", "")])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix, start):
    path = tmp_path / f"long.{suffix}"
    line = "#" + "all work and no play " * 200 + "\n"
    if suffix == "jsonl":
        line = json.dumps({"text": line}) + "\n"
    peaks = []
    for n_lines in (600, 2400):
        path.write_text(line * n_lines)
        tracemalloc.start()
        corpus = read_corpus(path, BYTES, DataRules(sample_start=start), 64)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(corpus.limits) == (1 if corpus.is_stream else n_lines)
        assert isinstance(corpus.ids.base, np.memmap)
    assert corpus.ids.nbytes > 40e6
    assert peaks[1] < min(1.1 * peaks[0], 0.5 * corpus.ids.nbytes)


def test_the_hash_tells_corpora_apart():
    parts = [([1, 2, 3], True), ([4, 5], True)]
    corpora = [parts, parts, [([1, 2, 3, 4, 5], True)], [([1, 2, ~3], True), ([4, 5], True)]]
    first, same, *others = [make_corpus(p, 8, has_bos=False).hash for p in corpora]
    assert first == same
    assert len({first, *others}) == 3
