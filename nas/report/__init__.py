"""The results of a search, to read: one self-contained HTML file, and the front as a picture."""

from nas.report.page import write_report
from nas.report.trade_off import write_front

__all__ = ["write_front", "write_report"]
