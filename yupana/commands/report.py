"""`yupana report`: one page of HTML about a run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from yupana.train.report import make_report


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Make one page of HTML about a run of pretrain, finetune or demo.

    It holds curves, texts, bill, graph, memory plan, hottest nodes and settings, and needs no
    other file and no network. The page is made from the log; the training step is made again from
    the settings in it, to be drawn and measured on this machine. Data are not needed.
    """

    # The run: its folder, its log (.jsonl), or a model, adapter or checkpoint that it wrote.
    run: Positional[Path]
    # File to write; by default report.html in the folder, or the log's name with .html.
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    # Run the training step to time its nodes, and measure the machine; some seconds.
    measure: bool = True


def run(settings: Settings) -> int:
    """Make the report; returns the exit code."""

    def tell(line: str) -> None:
        print(f"{line} …", file=sys.stderr, flush=True)

    print(make_report(settings.run, settings.out, settings.measure, tell))
    return 0
