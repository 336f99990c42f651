"""The expressions by which models split text, under the names that GGUF gives them.

They are those of the models' own `tokenizer.json`, in the form that llama.cpp uses. A kind names
all values of `tokenizer.ggml.pre` that mean it.
"""

import re
from dataclasses import dataclass

# First letter of a Unicode category -> the letter that stands for the class beyond ASCII.
CLASSES = {"N": "\xd1", "L": "\xd2", "P": "\xd3", "M": "\xd4", "S": "\xd5"}

# Insides of bracket expressions: the class beyond ASCII, and its ASCII members.
_N = "0-9\xd1"
_L = "A-Za-z\xd2"
_P = "!-#%-*,-/:;?@\\[\\\\\\]_{}\xd3"
_M = "\xd4"
_S = "$+<=>^`|~\xd5"
_UP, _LOW = "A-Z\xd2", "a-z\xd2"  # capital and small, of ASCII letters only


class Named(str):
    """An expression that names characters beyond ASCII, so it looks at the text itself."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to split: its names, and expressions applied one after the other."""

    names: tuple[str, ...]
    expressions: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False


_SUFFIX = "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = rf"'(?:[stmd]|re|ve|ll)| ?[{_L}]+| ?[{_N}]+| ?[^\s{_L}{_N}]+|\s+(?!\S)|\s+"
_DIGITS_IN_THREES = "[0-9][0-9][0-9]"


def _gpt4(digits: str, letters: str = _L, suffix: str = f"{_SUFFIX}|", tail: str = _BLANKS) -> str:
    """The expression of GPT-4 and most after it; `digits` says how many go together."""
    others = rf" ?[^\s{letters}{_N}]+[\r\n]*"
    return rf"{suffix}[^\r\n{_L}{_N}]?[{letters}]+|[{_N}]{digits}|{others}|{tail}"


def _cased(digits: str, marks: str = "", suffix: str = f"(?:{_SUFFIX})?") -> str:
    """The expression of GPT-4o: small letters end a word that capitals begin."""
    up, low = f"[{_UP}{marks}]", f"[{_LOW}{marks}]"
    word = rf"[^\r\n{_L}{_N}]?{up}*{low}+{suffix}|[^\r\n{_L}{_N}]?{up}+{low}*{suffix}"
    return rf"{word}|[{_N}]{digits}| ?[^\s{_L}{_N}]+[\r\n/]*|{_BLANKS}"


def _deepseek(tail: str) -> str:
    sign = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
    return rf"{sign}[A-Za-z]+|[^\r\n{_L}{_P}{_S}]?[{_L}{_M}]+| ?[{_P}{_S}]+{tail}"


_HAN_KANA = Named(r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+")
_HAN_HANGUL = Named(r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+")
_PHRASE = Named(r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+")
# A group of one to three digits that is followed by whole groups of three. As llama.cpp splits by
# hand here, what stands before the first group stays with it, for the expressions that follow.
_GROUPED = rf"[^{_N}]*[{_N}]{{1,3}}(?=(?:[{_N}]{{3}})*(?![{_N}]))"


def _points(ranges: str) -> str:
    """The inside of a bracket expression from hexadecimal code points, as "b5 c0-d6"."""
    return re.sub(r"\w+", lambda point: chr(int(point[0], 16)), ranges).replace(" ", "")


_CASED_LETTERS = "A-Za-z" + _points(
    "b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a "
    "38c 38e-3a1 3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba "
    "1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d "
    "1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc "
    "1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d "
    "2124 2126 2128 212a-212d 212f-2134 2139 213c-213f 2145-2149 214e 2183 2184 2c00-2c7b "
    "2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d a680-a69b a722-a76f a771-a787 a78b-a78e "
    "ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f 104b0-104d3 104d8-104fb "
    "10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943"
)
_ASIAN = _points(
    "4e00-9fff 3400-4dbf f900-faff 3040-309f 30a0-30ff ff65-ff9f 2f00-2fdf e40-e7f e80-eff "
    "1780-17ff 1000-109f aa60-aa7f a9e0-a9ff ac00-d7af 1100-11ff"
)

KINDS = (
    Kind(("default",), (rf"[{_P}$+<=>^~|]+", _GPT2, f"[{_N}]+", _DIGITS_IN_THREES)),
    Kind(
        (
            *("gpt-2", "gpt2", "phi-2", "gigachat", "a.x-4.0", "mellum", "modern-bert", "exaone4"),
            *("jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "jina-v1-en", "jina-v2-code"),
            *("roberta-bpe", "mpt", "olmo", "jais", "trillion", "granite-docling"),
        ),
        (_GPT2,),
    ),
    Kind(
        (
            *("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"),
            "mellum2",
        ),
        (f"[{_N}]", _GPT2),
    ),
    Kind(("falcon",), (rf"[{_P}$+<=>^~|`]+", _GPT2, _DIGITS_IN_THREES)),
    Kind(
        (
            *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0"),
            *("lfm2", "jina-v5-nano"),
        ),
        (_gpt4("{1,3}"),),
        whole_words=True,
        add_bos=True,
    ),
    Kind(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), (_gpt4("{1,3}"),)),
    Kind(
        (
            *("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan"),
            *("solar-open", "grok-2"),
        ),
        (_gpt4(""),),
    ),
    Kind(("qwen35",), (_gpt4("", letters=_L + _M),)),
    Kind(("ufakzeka",), (_gpt4("", suffix=""),)),
    Kind(("laguna",), (r"[^\n]+|[\n]+", _gpt4(""))),
    Kind(("minicpm5",), (f"[{_N}]{{1,3}}", _gpt4("+")), whole_words=True),
    Kind(
        ("jais-2",),
        (
            _gpt4(
                "{1,3}",
                tail=r"\s*[\r\n]+|"
                + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
                + r"|\s{1,2}(?!\S)|\s",
            ),
        ),
    ),
    Kind(
        ("seed-coder",),
        (rf"{_SUFFIX}|[^\r\n{_L}{_N}]?[{_L}]+|[{_N}]| ?[^\s{_L}{_N}]+|{_BLANKS}",),
    ),
    Kind(
        ("bailingmoe", "bailingmoe2", "llada-moe"),
        (_gpt4("", tail=r"\s*[\r\n]|\s+(?!\S)|\s+"),),
    ),
    Kind(
        ("exaone-moe",),
        (
            rf"{_SUFFIX}|[^\r\n{_L}{_N}]?(?:[{_L}][{_M}]*(?: [{_L}][{_M}]*)*)+|[{_N}]"
            rf"| ?[^\s{_L}{_N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
    ),
    Kind(("tekken",), (_cased("", suffix=""),), whole_words=True, add_bos=True),
    Kind(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), (_cased("{1,3}"),)),
    Kind(("granite-embed-multi-97m",), (_cased("{1,3}", marks=_M),), whole_words=True),
    Kind(
        ("tiny_aya", "cohere2moe"),
        (
            _GROUPED,
            rf"[^\r\n{_L}{_N}]?[{_L}{_M}]+(?:{_SUFFIX})?|[{_N}]{{1,3}}"
            rf"| ?[^\s{_L}{_N}]+[\r\n/]*|{_BLANKS}",
        ),
    ),
    Kind(
        ("youtu",),
        (
            Named(
                r"[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
                r"|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
            ),
            rf"[^\r\n{_L}{_N}]?[{_L}{_M}]+(?:{_SUFFIX})?|[{_N}]"
            rf"| ?[^\s{_L}{_N}]+[\r\n/]*|{_BLANKS}",
        ),
        whole_words=True,
    ),
    Kind(("superbpe",), (f"[{_N}]+", r"(?=(\d{3})+(?!\d))")),
    Kind(("poro-chat", "bloom", "gpt3-finnish"), (_PHRASE,)),
    Kind(("viking",), (_PHRASE, f"[{_N}]")),
    Kind(
        ("deepseek-llm",),
        (
            r"[\r\n]",
            Named(rf"\s?[{_CASED_LETTERS}]+"),
            Named(r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"),
            r"\s+\Z",
            _HAN_HANGUL,
            f"[{_N}]+",
        ),
    ),
    Kind(
        ("deepseek-coder",),
        (r"[\r\n]", rf"\s?[{_L}]+", rf"\s?[{_P}]+", _HAN_HANGUL, f"[{_N}]"),
    ),
    Kind(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
        (f"[{_N}]{{1,3}}", _HAN_KANA, _deepseek(rf"[\r\n]*|{_BLANKS}")),
    ),
    Kind(
        ("spark2_5",),
        (f"[{_N}]{{1,3}}", _HAN_KANA, _deepseek(r"|[\r\n]|\s+(?!\S)|\s+"), f"[{_N}]"),
    ),
    Kind(
        ("afmoe",),
        (_GROUPED, Named(f"[{_ASIAN}]+"), _deepseek(rf"[\r\n]*|{_BLANKS}")),
    ),
    Kind(
        ("chameleon",),
        (
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            f"[{_N}]",
            rf"[{_P}!-/:-@\[-`{{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
)
