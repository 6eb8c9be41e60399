"""Lets the graders import the drawings of the tests, and keeps the output short."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))


def pytest_configure(config):
    """Called by pytest before all tests."""
    config.option.tbstyle = "short"
    config.option.verbose -= 2  # no header, no last line
    config.option.reportchars = "N"  # no summary


def pytest_terminal_summary(terminalreporter):
    """Called by pytest after all tests: the way on, once all nine exercises are solved."""
    passed = terminalreporter.stats.get("passed", [])
    if sum("test_masks.py" in report.nodeid for report in passed) == 9:
        terminalreporter.write_line("Course 1 is done. Course 2: "
                                    "python -m pytest extras/exercises/test_model.py -x")
