"""--no-skips, for environments that were made for what some tests need: hooks of pytest, which conftest.py imports."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

import pytest

Report = TypeVar("Report", pytest.CollectReport, pytest.TestReport)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --no-skips, for environments that were made for what some tests need."""
    parser.addoption("--no-skips", action="store_true", help="a test or a file that is skipped fails")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Under --no-skips, a file that would be skipped as a whole fails."""
    return _failed_if_skipped(collector.config, (yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under --no-skips, a test that would be skipped fails."""
    return _failed_if_skipped(item.config, (yield))


def _failed_if_skipped(config: pytest.Config, report: Report) -> Report:
    if config.getoption("--no-skips") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"It was skipped: {report.longrepr}"
    return report
