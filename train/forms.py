"""The forms that an entry of training data in JSON may have, and the text that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from yupana.graphlib.errors import DataError

# Messages, and whether the turn of the assistant shall be opened at the end; to text.
Template = Callable[[Sequence[Mapping[str, Any]], bool], str]
Span = tuple[int, int]  # first character, and the one behind the last

FORMS = (
    '{"text": …}, {"prompt": …, "completion": …}, {"messages": […]}, '
    '{"instruction": …, "output": …} or {"conversations": […]}'
)
# Who speaks in conversations of ShareGPT's form, as templates call them.
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
# What Alpaca's models were trained on (tatsu-lab/stanford_alpaca, train.py).
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)


class Entry(NamedTuple):
    """An entry as text."""

    text: str
    answers: list[Span] | None  # what is learned; None: all
    special: bool  # control tokens written out in it are tokens
    has_end: bool  # an end token follows


def read_entry(
    entry: Any, template: Template | None = None, all_learned: bool = False, text_ends: bool = True
) -> Entry:
    """The text of an entry of any form.

    Args:
        entry: as JSON has it.
        template: makes text of chat messages.
        all_learned: prompts and what users say too.
        text_ends: an end token follows plain texts.
    Raises:
        DataError: it has no such form, or needs a template.

    >>> read_entry({"prompt": "1+1=", "response": "2"})
    Entry(text='1+1=2', answers=[(4, 5)], special=False, has_end=True)
    """
    if not isinstance(entry, dict):
        raise DataError(f"got {type(entry).__name__}, want an object: {FORMS}.")
    if "messages" in entry:
        return _chat(entry["messages"], template, all_learned)
    if "conversations" in entry:
        return _chat(_share_gpt(entry), template, all_learned)
    for answer in ("completion", "response"):
        if "prompt" in entry and answer in entry:
            return _pair(_string(entry, "prompt"), _string(entry, answer), all_learned)
    if "instruction" in entry and "output" in entry:
        return _alpaca(entry, template, all_learned)
    if "text" in entry:
        return Entry(_string(entry, "text"), None, False, text_ends)
    raise DataError(f"no known form: got keys {[*entry]}, want {FORMS}.")


def _pair(prompt: str, answer: str, all_learned: bool) -> Entry:
    text = prompt + answer
    return Entry(text, None if all_learned else [(len(prompt), len(text))], False, True)


def _alpaca(entry: Mapping[str, Any], template: Template | None, all_learned: bool) -> Entry:
    """An instruction, what it is about if anything, and the output; a turn each with a template."""
    instruction, output = _string(entry, "instruction"), _string(entry, "output")
    about = "" if entry.get("input") is None else _string(entry, "input")
    if template is None:
        form = _ALPACA_INPUT if about else _ALPACA
        return _pair(form.format(instruction=instruction, input=about), output, all_learned)
    asked = f"{instruction}\n\n{about}" if about else instruction
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": output}]
    return _chat(turns, template, all_learned)


def _share_gpt(entry: Mapping[str, Any]) -> Any:
    """Messages of a conversation in ShareGPT's form; other forms of messages as they are."""
    turns = entry["conversations"]
    if not isinstance(turns, list) or not all(isinstance(t, dict) and "from" in t for t in turns):
        return turns
    messages = []
    if entry.get("system"):
        messages.append({"role": "system", "content": _string(entry, "system")})
    for k, turn in enumerate(turns):
        role = _ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
        if role is None:
            raise DataError(
                f"conversations: from of turn {k + 1}: got {turn['from']!r}, want one of "
                f"{', '.join(_ROLES)}."
            )
        if "value" not in turn:
            raise DataError(f"conversations: value of turn {k + 1}: got none, want a string.")
        messages.append({"role": role, "content": turn["value"]})
    return messages


def _string(entry: Mapping[str, Any], key: str) -> str:
    value = entry[key]
    if not isinstance(value, str):
        raise DataError(f"{key}: got {type(value).__name__}, want a string.")
    return value


def _chat(messages: Any, template: Template | None, all_learned: bool) -> Entry:
    """A conversation; what the assistant says in it is learned."""
    if template is None:
        raise DataError(
            "messages: got a conversation, want a chat template for it. Use a model that has one, "
            "pass --chat-template, or write lines with text, or with prompt and completion."
        )
    if not isinstance(messages, list) or not all(_is_message(m) for m in messages):
        raise DataError(
            'messages: got something else, want a list of {"role": …, "content": …} objects.'
        )
    for k, message in enumerate(messages):
        content = message.get("content")
        # Templates write lists of parts, and calls of tools, each in their own way.
        if not isinstance(content, str | list) and "tool_calls" not in message:
            got = type(content).__name__ if "content" in message else "none"
            raise DataError(f"messages: content of message {k + 1}: got {got}, want a string.")
    whole = template(messages, False)
    answers: list[Span] = []
    for k, message in enumerate(messages):
        if message["role"] != "assistant" or all_learned:
            continue
        before, through = template(messages[:k], True), template(messages[: k + 1], False)
        if not (through.startswith(before) and whole.startswith(through)):
            raise DataError(
                f"messages: the template writes message {k + 1} differently when others follow: "
                "the answer cannot be told from the rest. Set train_on_prompt to learn all."
            )
        answers.append((len(before), len(through)))
    return Entry(whole, None if all_learned else answers, True, False)


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str)
