r"""Escapes in texts of the command line, as llama.cpp and its former finetune read them."""

import re

_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"', "\\": "\\"}


def unescape(text: str) -> str:
    r"""Replace \n, \r, \t, \', \", \\ and \xHH; others stay as they are.

    In llama.cpp \xHH is a byte: several that are UTF-8 together are its characters here, too. What
    is not is a character each, as in Python.

    >>> unescape(r"a\nb\\n\x41\q"), unescape(r"\xc3\xb1"), unescape(r"\xf1")
    ('a\nb\\nA\\q', 'ñ', 'ñ')
    """

    def character(found: re.Match[str]) -> str:
        if found[1]:
            return _ESCAPES[found[1]]
        raw = bytes.fromhex(found[0].replace("\\x", ""))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw.decode("latin-1")

    return re.sub(r"\\([nrt'\"\\])|(?:\\x[0-9a-fA-F]{2})+", character, text)
