"""`python -m leuko.report`: a run's page made again, or several runs on one page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from leuko.commandline import Parser
from leuko.commandline import run as run_command
from leuko.report import page, run

EXAMPLES = """examples:
  python -m leuko.report runs/val/fcos                                   # runs/val/fcos/report.html anew
  python -m leuko.report runs/val/fcos runs/val/cascade_rcnn             # side by side: runs/report/comparison.html
  python -m leuko.report runs/val/* --out comparison.html"""


def main(argv: Sequence[str] | None = None) -> None:
    """The command; raises LeukoError for what the user can mend."""
    parser = Parser(
        prog="leuko report",
        description="Make the page of a run or a validation again, or put several on one page.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folder of a run or of a validation")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="the page [RUN/report.html, or runs/report/comparison.html]"
    )
    args = parser.parse_args(argv)
    if len(args.runs) == 1:
        content, out = page.build(args.runs[0]), args.out or args.runs[0] / "report.html"
    else:
        content, out = page.compare(args.runs), args.out or Path("runs/report/comparison.html")
    with run.explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    run.write_text(out, content)
    print(f"report: {out}")


if __name__ == "__main__":
    run_command(main)
