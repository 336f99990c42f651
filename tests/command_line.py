"""The command line, called from a test."""

import re
from typing import Any

from yupana.cli import main


def call(capsys: Any, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; compilations are announced on stderr and taken out."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, re.sub(r"yupana: compiling \d+ kernels.*\n", "", err)
