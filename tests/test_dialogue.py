"""What a model reads in a conversation, and what the terminal makes of what is typed."""

import io

import pytest

from yupana.dialogue import RawDialogue, TemplateDialogue, Turn
from yupana.flag_values import parse_biases
from yupana.graphlib.errors import SettingError
from yupana.models.chat_template import CHATML, ChatTemplate, special_words
from yupana.models.escapes import unescape
from yupana.models.tokenizer import read_tokenizer
from yupana.models.tokenizer_bytes import LETTERS
from yupana.terminal import Screen, Watch

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
BOS, EOS, START, END = range(256, 260)
STRIPPING = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system, please') }}{% endif %}"
    "{% if m.role == 'user' %}[{{ m.content }}]{% else %}{{ m.content | trim }}</s>{% endif %}"
    "{% endfor %}"
)


def make_tokenizer(add_bos: bool = False):
    entries = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*LETTERS, *SPECIAL],
        "token_type": [1] * 256 + [3] * 4,
        "merges": [],
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "eot_token_id": END,
        "add_bos_token": add_bos,
    }
    return read_tokenizer({f"tokenizer.ggml.{k}": v for k, v in entries.items()})


TOKENIZER = make_tokenizer()


def text(ids) -> str:
    return TOKENIZER.decode(ids, special=True)


def make_dialogue(source: str, tokenizer=TOKENIZER, **settings) -> TemplateDialogue:
    return TemplateDialogue(tokenizer, ChatTemplate(source, special_words(tokenizer)), **settings)


@pytest.mark.parametrize("end", [END, EOS, None])
def test_chatml_is_read_piece_by_piece(end):
    """Also where the model ended otherwise than the template does, or was stopped."""
    dialogue = make_dialogue(CHATML, system="Be kind.")
    read = text(dialogue.opening())
    assert read == "<|im_start|>system\nBe kind.<|im_end|>\n"
    assert dialogue.user_begins
    messages = [{"role": "system", "content": "Be kind."}]
    for question, answer in (("Hello", " Hi!"), ("How are you?", "Fine\n"), ("Bye", "")):
        turn = dialogue.turn(question)
        assert not turn.starts_over
        read += text(turn.ids)
        messages.append({"role": "user", "content": question})
        whole = ChatTemplate(CHATML).render(messages)
        assert read.replace("</s><|im_end|>", "<|im_end|>") == whole
        assert dialogue.answered(answer, end) == []
        read += answer + ("" if end is None else TOKENIZER.tokens[end])
        messages.append({"role": "assistant", "content": answer})


def test_a_template_may_strip_answers():
    dialogue = make_dialogue(STRIPPING, first="one")
    assert not dialogue.user_begins
    assert text(dialogue.opening()) == "<s>[one]"
    dialogue.answered(" two ", EOS)
    assert text(dialogue.turn("three").ids) == "[three]"
    dialogue.answered(" four", None)
    assert text(dialogue.turn("five").ids) == "</s>[five]"


def test_an_answer_may_come_in_parts():
    dialogue = make_dialogue(CHATML, first="one")
    dialogue.opening()
    dialogue.answered("tw", None)
    dialogue.answered("o", END)
    turn = dialogue.turn("three")
    assert text(turn.ids) == "\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_changes_the_past_starts_over():
    last = "{% for m in messages %}{{ loop.index if loop.last else 0 }}{{ m.content }}{% endfor %}"
    dialogue = make_dialogue(last)
    assert dialogue.turn("a") == Turn([*b"1a"])
    dialogue.answered("b", None)
    assert dialogue.turn("c") == Turn([*b"0a0b3c"], starts_over=True)


def test_a_refused_message_is_as_if_not_said():
    dialogue = make_dialogue(STRIPPING, system="no")
    assert dialogue.opening() == []
    with pytest.raises(SettingError, match="no system, please"):
        dialogue.turn("one")
    alternating = "{% if messages | length == 2 %}{{ raise_exception('not yet') }}{% endif %}x"
    dialogue = make_dialogue(alternating)
    dialogue.turn("one")
    with pytest.raises(SettingError, match="not yet"):
        dialogue.turn("two")
    dialogue.answered("two", None)


@pytest.mark.parametrize("source", [CHATML, STRIPPING])
def test_one_bos_begins_the_text_where_the_model_wants_it(source):
    tokenizer = make_tokenizer(add_bos=True)
    dialogue = make_dialogue(source, tokenizer, first="a")
    assert dialogue.opening().count(BOS) == 1
    dialogue.answered("b", EOS)
    assert BOS not in dialogue.turn("c").ids


def test_raw_text_has_prefix_and_suffix():
    dialogue = RawDialogue(
        TOKENIZER, "A: hi\nB:", prefix=" ", suffix="\nA:", reverse_prompts=["B:"]
    )
    assert text(dialogue.opening()) == "A: hi\nB:"
    assert not dialogue.user_begins
    assert (dialogue.mark, dialogue.suffix) == (" ", "\nA:")
    assert text(dialogue.turn("what </s>").ids) == " what </s>\nA:"
    assert EOS not in dialogue.turn("what </s>").ids  # typed, so no special token
    assert text(dialogue.answered("x", EOS)) == "B:"
    assert dialogue.answered("x", None) == []
    assert RawDialogue(TOKENIZER, "").user_begins
    assert RawDialogue(TOKENIZER, "a", user_begins=True).user_begins
    with_bos = RawDialogue(TOKENIZER, "a", has_bos=True)
    assert with_bos.turn("b").ids == [BOS, ord("b")]
    assert RawDialogue(TOKENIZER, "").opening() == []
    assert RawDialogue(make_tokenizer(add_bos=True), "").opening() == [BOS]


def test_reverse_prompts_are_found_at_the_end():
    watch = Watch(["User:", "<|im_end|>"], TOKENIZER)
    seen = [watch.sees([byte]) for byte in b"a User: b"]
    assert seen.index(True) == len("a User:") - 1
    assert seen.count(True) == 1
    assert watch.sees([END])
    assert watch.sees([*b"and User:"])
    assert not watch.sees([*b"User: "])
    loose = Watch(["User:"], TOKENIZER, slack=2)
    assert loose.sees([*b"User: a"])
    assert not loose.sees([*b"User: ab "])
    assert not Watch([], TOKENIZER).sees([1])


@pytest.mark.parametrize(
    ("typed", "multiline", "expected"),
    [
        ("hello\n", False, ["hello", None]),
        ("\n", False, ["", None]),
        ("a\\\nb\nc\n", False, ["a\nb", "c", None]),
        ("a\nb\\\nc\\\n", True, ["a\nb", "c", None]),
        ("a/\nb\n", True, ["a", "b", None]),
        ("a\\\n", False, ["a", None]),
        ("no end", False, ["no end", None]),
    ],
)
def test_lines_are_put_together(monkeypatch, capsys, typed, multiline, expected):
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    screen = Screen(TOKENIZER)
    assert [screen.ask("> ", multiline) for _ in expected] == expected
    assert capsys.readouterr().out.startswith("> ")


def test_colours_and_characters_of_several_tokens(capsys):
    screen = Screen(TOKENIZER, color=True, special=True)
    screen.show("prompt", "prompt")
    assert [screen.token(byte) for byte in "ñ".encode()] == ["", "ñ"]
    assert screen.token(END) == "<|im_end|>"
    screen.token(0xF0)
    assert screen.finish() == "\ufffd"
    assert capsys.readouterr().out == "\x1b[33mprompt\x1b[0mñ<|im_end|>\ufffd"
    plain = Screen(TOKENIZER)
    assert plain.token(END) == ""


def test_biases_are_read_as_llama_cpp_does():
    assert parse_biases(("1+2.5", "3-inf", "4-1e-3")) == {1: 2.5, 3: float("-inf"), 4: -0.001}
    for wrong in ("1", "+1", "a+1", "1+", "1+nan", "1++2"):
        with pytest.raises(SettingError, match="want a token id, a sign and a number"):
            parse_biases((wrong,))


def test_escapes_are_read():
    assert unescape(r"a\nb\r\t\"\'\\n\x41\é\q\x4") == "a\nb\r\t\"'\\nA\\é\\q\\x4"
    assert unescape(r"\xe2\x82\xac \xf1\\xf1") == "€ ñ\\xf1"  # bytes in llama.cpp
