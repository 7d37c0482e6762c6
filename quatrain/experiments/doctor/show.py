"""An examination in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quatrain.experiments.doctor.finding import ERROR, OK, WARNING, Examination

if TYPE_CHECKING:
    from rich.console import Group

MARKS = {OK: ("✓", "green"), WARNING: ("!", "yellow"), ERROR: ("✗", "bold red")}


def shown(found: Examination) -> Group:
    """What is examined, one line per check with its mark and numbers, why and what to do under the bad ones, and a paragraph."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 2))
    for name, value in found.about.items():
        head.add_row(Text(name, style="dim"), value)
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(max_width=34)
    table.add_column(ratio=1)
    for finding in found.findings:
        mark, style = MARKS[finding.severity]
        told = Text(finding.seen, style="" if finding.severity == OK else style)
        if finding.why:
            told.append(f"\nwhy    {finding.why}", style="not bold default")
        if finding.fix:
            told.append(f"\nto do  {finding.fix}", style="not bold default")
        table.add_row(Text(mark, style=style), Text(finding.check, style=style if finding.severity != OK else ""), told)
    return Group(head, Padding(table, (1, 0)), Text(found.summary()))
