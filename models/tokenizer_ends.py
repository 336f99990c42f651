"""Tokens known by their text: those that end a generation, and those a file gives a wrong type.

Files often name one end token where a chat model has several, and mark some as ordinary words;
llama.cpp goes by these lists of texts, so that generation stops where its users expect.
"""

from collections.abc import Mapping, Sequence

from yupana.models.tokenizer_base import TokenType

_END_OF_SENTENCE = "<\uff5cend\u2581of\u2581sentence\uff5c>"  # DeepSeek
_TURN_ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"),
    *("<EOT>", "_<EOT>", "[EOT]", _END_OF_SENTENCE, "<end_of_utterance>"),
)
_OTHER_ENDS = (
    *("<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<|eom_id|>", "[EOS]", "[e~["),
    *("</s>", "<eos>", "<turn|>", "<|tool_response>"),
)
# Tokens for filling in the middle; padding, repository and file marks end a generation too.
_FILL_ENDS = (
    *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
)
_DEEPSEEK_FILL = tuple(f"<\uff5cfim\u2581{part}\uff5c>" for part in ("begin", "hole", "end"))
_FILL = (
    *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>", "\u2581<PRE>"),
    *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>", "\u2581<SUF>"),
    *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "\u2581<MID>"),
    *("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    *("<|prefix|>", "<|suffix|>", "<|middle|>", *_DEEPSEEK_FILL),
)
_CONTROL = frozenset((*_TURN_ENDS, *_OTHER_ENDS, *_FILL_ENDS, *_FILL))
_ENDS = frozenset((*_TURN_ENDS, *_OTHER_ENDS, *_FILL_ENDS))
# The channels of gpt-oss: shown, as programs look for them in the text.
_SHOWN = frozenset(("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"))
# With these, "<|end|>" closes a message and not the turn.
_MESSAGE_ENDS = ({"<|return|>", "<|call|>"}, {"<|call|>", "<|flush|>"}, {"<|calls|>", "<|flush|>"})


def adjust_types(tokens: Sequence[str], types: Sequence[int]) -> list[int]:
    """The types with those corrected that texts give away.

    >>> adjust_types(["a", "<|im_end|>", "<|start|>"], [1, 1, 3])
    [1, 3, 4]
    """
    ids = {token: k for k, token in enumerate(tokens)}
    adjusted = list(types)
    for token in _CONTROL & ids.keys():
        adjusted[ids[token]] = int(TokenType.CONTROL)
    for token in _SHOWN & ids.keys():
        adjusted[ids[token]] = int(TokenType.USER_DEFINED)
    if "<|end|>" in ids and any(pair <= ids.keys() for pair in _MESSAGE_ENDS):
        adjusted[ids["<|end|>"]] = int(TokenType.USER_DEFINED)
    if {"<|tool_response>", "</s>"} <= ids.keys():
        adjusted[ids["</s>"]] = int(TokenType.NORMAL)
    return adjusted


def end_tokens(tokens: Sequence[str], types: Sequence[int], special: Mapping[str, int]) -> set[int]:
    """Ids at which generation stops.

    >>> end_tokens(["a", "</s>", "<|im_end|>"], [1, 3, 3], {"eos": 1})
    {1, 2}
    """
    ends = {k for k, token in enumerate(tokens) if token in _ENDS and types[k] == TokenType.CONTROL}
    names = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
    return ends | {special[name] for name in names if name in special}
