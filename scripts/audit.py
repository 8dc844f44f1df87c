"""Known vulnerabilities in what the locks pin, by pip-audit. Ends with 0: none, 1: some, 2: it could not look."""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("plugins.lock", "collector.lock", "dev.lock", "build.lock")
TOOL = "pip-audit==2.10.1"
NOT_AUDITED = 2
# What pip-audit says of vulnerabilities; anything else it ends with is a failure of its own.
FOUND = "known vulnerabilit"


def tool(directory: Path) -> Path | None:
    """pip-audit in an environment of its own: its dependencies are none of ours. None: it cannot be had."""
    python = directory / "bin" / "python"
    program = directory / "bin" / "pip-audit"
    if program.exists():
        return program
    if not python.exists():
        venv.create(directory)
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--retries=1", "--timeout=15", TOOL]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"audit: {TOOL} cannot be installed: {_last(done.stderr)}", file=sys.stderr)
        return None
    return program


def audit(program: Path, lock: Path) -> int:
    """0, 1 or ``NOT_AUDITED`` for one lock."""
    options = ["--require-hashes", "--disable-pip", "--progress-spinner=off", "--timeout=15"]
    done = subprocess.run([program, *options, "-r", lock], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        print(f"{lock.name}: no known vulnerability")
        return 0
    if FOUND in (done.stdout + done.stderr).lower():
        print(f"{lock.name}: {_last(done.stderr)}\n{done.stdout}")
        return 1
    print(f"audit: {lock.name} could not be looked up: {_last(done.stderr)}", file=sys.stderr)
    return NOT_AUDITED


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason given"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "locks", nargs="*", default=LOCKS, metavar="LOCK", help="in requirements/ (default: %(default)s)"
    )
    parser.add_argument("--venv", type=Path, default=ROOT / ".bootstrap" / "audit", help="where pip-audit is kept")
    options = parser.parse_args()
    program = tool(options.venv)
    results = [audit(program, ROOT / "requirements" / name) for name in options.locks] if program else [NOT_AUDITED]
    if 1 in results:
        return 1
    if NOT_AUDITED in results:
        print(
            "audit: not audited. It asks a package index for pip-audit and a vulnerability service for what it knows:"
            " run it where both can be reached.",
            file=sys.stderr,
        )
        return NOT_AUDITED
    return 0


if __name__ == "__main__":
    sys.exit(main())
