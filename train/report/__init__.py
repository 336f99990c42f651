"""One page of HTML about a run: what it was told, what it took, how it went, where time goes."""

from yupana.train.report.page import make_report
from yupana.train.report.runlog import RunLog, find_log, read_log

__all__ = ["RunLog", "find_log", "make_report", "read_log"]
