"""Samples with the tokenizers and templates of real models."""

import json
from pathlib import Path

import numpy as np
import pytest

from yupana.models.chat_template import CHATML, ChatTemplate, special_words
from yupana.models.tokenizer import load_tokenizer
from yupana.train.corpus import Codec
from yupana.train.data import prepare_data
from yupana.train.samples import DataRules, read_corpus

DATA = Path(__file__).parents[2] / "shared" / "data"
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}{% else %}"
    "{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MESSAGES = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A llama."},
    {"role": "user", "content": "What do you eat?"},
    {"role": "assistant", "content": "Grass, mostly."},
]


@pytest.fixture(scope="module", params=["llama-spm", "gpt-2"])
def tokenizer(request):
    path = DATA / f"ggml-vocab-{request.param}.gguf"
    if not path.is_file():
        pytest.skip("the vocabularies are not beside this checkout")
    return load_tokenizer(path)


def learned(tokenizer, path, template=None, **rules):
    """What is learned of each sample, as text, and all of it."""
    made = DataRules(**rules)
    corpus = read_corpus(path, Codec.of(tokenizer), made, 64, template)
    samples = [corpus.ids[begin:end] for begin, end in corpus.limits]
    texts = [tokenizer.decode(ids[ids >= 0], special=True) for ids in samples]
    return texts, [tokenizer.decode(np.maximum(ids, ~ids), special=True) for ids in samples]


@pytest.mark.parametrize("source", [CHATML, LLAMA2], ids=["chatml", "llama2"])
def test_answers_of_conversations(tmp_path, tokenizer, source):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"messages": MESSAGES}))
    template = ChatTemplate(source, special_words(tokenizer)).render
    (answers,), (whole,) = learned(tokenizer, path, template)
    assert "llama" in answers
    assert "Grass, mostly." in answers
    assert "Who" not in answers
    assert "eat" not in answers
    assert ("<|im_end|>" if source is CHATML else "</s>") in answers or tokenizer.bos != 1
    # SentencePiece's tokenizer puts a space behind a control token, as llama.cpp's does.
    assert whole.replace(" ", "") == template(MESSAGES, False).replace(" ", "")


def test_prompts_and_completions(tmp_path, tokenizer):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"prompt": "Two and two make", "completion": " four."}))
    (answer,), (whole,) = learned(tokenizer, path)
    end = tokenizer.tokens[tokenizer.eos]
    assert answer.strip() == f"four.{end}"
    assert whole == f"Two and two make four.{end}"


def test_rows_begin_with_bos_once(tmp_path, tokenizer):
    path = tmp_path / "d.jsonl"
    path.write_text(
        f"{json.dumps({'messages': MESSAGES})}\n" + '{"text": "some plain words"}\n' * 3
    )
    template = ChatTemplate(LLAMA2, special_words(tokenizer)).render
    codec, rules = Codec.of(tokenizer), DataRules(validation=0.0)
    corpus = read_corpus(path, codec, rules, 64, template)
    rows = prepare_data(corpus, codec, rules, 64, seed=1).training
    for k in range(4):
        ids = rows.segments(k)[0]
        ids = np.maximum(ids, ~ids)
        # LLaMA 2's template writes it itself; GPT-2 wants none, but has one by that name.
        from_template = "INST" in tokenizer.decode(ids)
        assert (ids[0] == tokenizer.bos) == (tokenizer.add_bos or from_template)
        assert ids[1] != tokenizer.bos


def test_control_tokens_in_plain_text_are_text(tmp_path, tokenizer):
    path = tmp_path / "d.txt"
    end = tokenizer.tokens[tokenizer.eos]
    path.write_text(f"#this is no end: {end} indeed")
    corpus = read_corpus(path, Codec.of(tokenizer), DataRules(sample_start="#"), 64)
    assert (corpus.ids == tokenizer.eos).sum() == 1
    assert corpus.ids[-1] == tokenizer.eos
