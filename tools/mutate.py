"""Plants each bug of tests/mutation/bugs.py in a copy of the source, and sees whether the tests of its area notice.

python tools/mutate.py                      # all; writes tests/mutation/RESULT.md
python tools/mutate.py --only 3 7           # some, by number; writes nothing

Exit code 1 if fewer than 90 % are caught.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "mutation"))

from bugs import BUGS, Bug  # noqa: E402

RESULT = ROOT / "tests" / "mutation" / "RESULT.md"
NEEDED = 0.9
SECONDS = 400
FEW, MANY = 1200, 6000
"""Random schedules of the simulator: a few find most bugs sooner; with every change there are many."""
COPIED = ("src", "tests", "tools", "docs", "README.md", "pyproject.toml", "CHANGELOG.md")


def plant(bug: Bug, source: Path) -> None:
    """Put the bug into a copy of the source."""
    path = source / "quire" / bug.file
    text = path.read_text()
    if text.count(bug.old) != 1:
        raise SystemExit(f"{bug.file}: the text of {bug.what!r} stands there {text.count(bug.old)} times, not once")
    path.write_text(text.replace(bug.old, bug.new))


def caught_by(bug: Bug) -> str | None:
    """The first test that fails, None if none does.

    Raises:
        SystemExit: the same tests fail without the bug.
    """
    if bug.tests not in _SOUND:
        _SOUND.add(bug.tests)
        if failed := first_failure(None, bug.tests, FEW):
            raise SystemExit(f"without any bug: {failed}")
    return first_failure(bug, bug.tests, FEW) or first_failure(bug, bug.tests, MANY)


_SOUND: set[str] = set()
"""Tests that were seen to pass without a bug."""


def first_failure(bug: Bug | None, tests: str, schedules: int) -> str | None:
    """The first test that fails with a bug, or without one. A run that takes too long is a failure, too."""
    with tempfile.TemporaryDirectory(prefix="quire-mutant-") as folder:
        copy = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, copy / name)
        if bug is not None:
            plant(bug, copy / "src")
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "pytest",
            "-q",
            "-x",
            "--no-header",
            "--tb=no",
            "--timeout",
            "60",
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": str(copy / "src"),
            "QUIRE_TEST_SCHEDULES": str(schedules),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        try:
            done = subprocess.run(
                [*command, *tests.split()],
                cwd=copy,
                env=environment,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"no end within {SECONDS} s"
        if done.returncode == 0:
            return None
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        if not failed:
            raise SystemExit(f"the tests did not run\n{done.stdout}\n{done.stderr}")
        return failed[0].split(" - ")[0].split(" ", 1)[1]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of bugs")
    args = parser.parse_args()
    rows = []
    for number, bug in enumerate(BUGS, 1):
        if args.only and number not in args.only:
            continue
        begun = time.monotonic()
        found = caught_by(bug)
        rows.append((number, bug, found))
        print(f"{number:2} {bug.what}: {found or 'NOT CAUGHT'} ({time.monotonic() - begun:.0f} s)", flush=True)
    share = sum(found is not None for *_, found in rows) / len(rows)
    print(f"{share:.0%} of {len(rows)} caught")
    if not args.only:
        RESULT.write_text(report(rows, share))
    raise SystemExit(0 if share >= NEEDED else 1)


def report(rows: list[tuple[int, Bug, str | None]], share: float) -> str:
    """The table."""
    lines = [
        "# Planted bugs, and what noticed them",
        "",
        f"Written by `python tools/mutate.py`: {share:.0%} of {len(rows)} bugs are caught by the per-change tests.",
        "",
        "| | bug | file | caught by |",
        "|---|---|---|---|",
    ]
    lines += [f"| {n} | {bug.what} | `{bug.file}` | {f'`{by}`' if by else '**not caught**'} |" for n, bug, by in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
