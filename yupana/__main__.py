"""`yupana` and `python -m yupana`: the command line, once Ctrl-C ends it without a traceback."""

import sys

from yupana.ctrl_c import let_ctrl_c_end


def main() -> int:
    """Run a program of the command line; returns the exit code."""
    let_ctrl_c_end()
    from yupana.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
