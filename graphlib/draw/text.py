"""Text in pictures."""

import html

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def format_bytes(n: float) -> str:
    """Bytes with three digits and a binary unit.

    >>> format_bytes(640), format_bytes(1_641_536)
    ('640 B', '1.57 MiB')
    """
    for unit in _UNITS[:-1]:
        if abs(n) < 999.5:
            return f"{n:.3g} {unit}"
        n /= 1024
    return f"{n:.3g} {_UNITS[-1]}"


def format_flops(n: float) -> str:
    """Floating-point operations with three digits and a decimal unit.

    >>> format_flops(96), format_flops(2_097_152)
    ('96 FLOP', '2.1 MFLOP')
    """
    for prefix in ("", "k", "M", "G", "T"):
        if n < 999.5:
            return f"{n:.3g} {prefix}FLOP"
        n /= 1000
    return f"{n:.3g} PFLOP"


def format_time(ns: float) -> str:
    """A time given in ns with three digits and the unit that suits.

    >>> format_time(830), format_time(1_641_536), format_time(2.5e9)
    ('830 ns', '1.64 ms', '2.5 s')
    """
    for unit in ("ns", "µs", "ms"):
        if ns < 999.5:
            return f"{ns:.3g} {unit}"
        ns /= 1000
    return f"{ns:.3g} s"


def printable(text: str) -> str:
    """`text` without the control characters that XML forbids."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def escape(text: str) -> str:
    """Text for HTML, SVG and graphviz's labels.

    >>> escape("a < b")
    'a &lt; b'
    """
    return html.escape(printable(text), quote=False)
