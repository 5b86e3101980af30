"""What was compared with the published system, collected from the tests and printed as one table."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

_ROWS = pytest.StashKey["Ledger"]()


@dataclass
class Ledger:
    """Rows of the table: what was compared, how many, the largest difference found and the one allowed."""

    rows: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    def add(self, what: str, many: str, largest: str, allowed: str) -> None:
        """Add a row; a fuller comparison of the same thing, which runs later, takes its place."""
        self.rows[what] = many, largest, allowed


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = Ledger()


@pytest.fixture(scope="session")
def ledger(request: pytest.FixtureRequest) -> Ledger:
    return request.config.stash[_ROWS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[_ROWS].rows
    if not rows:
        return
    table = [("compared with the published system", "how many", "largest difference", "allowed")]
    table += [(what, *row) for what, row in rows.items()]
    widths = [max(len(row[k]) for row in table) for k in range(4)]
    terminalreporter.section("parity")
    for i, row in enumerate(table):
        terminalreporter.write_line(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
        if i == 0:
            terminalreporter.write_line("  ".join("-" * width for width in widths))
