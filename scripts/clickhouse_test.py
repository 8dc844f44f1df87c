"""Run the sinks' contract and ClickHouse's own tests on a ClickHouse in process (chdb), installed beside .venv.

Left out, saying why and with exit status 0, where its wheels cannot be had. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"
CHDB = ROOT / ".chdb"
LOCK = ROOT / "requirements" / "chdb.lock"
INSTALL_S = 240  # 46 s with wheels at hand
TESTS = ("tests/contract/test_sink_contract.py", "tests/integration/test_sink_clickhouse.py")


def install() -> str | None:
    """Make .chdb where it is not what the lock says. Returns why that is not possible."""
    wanted = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()
    stamp = CHDB / ".made-from"
    if stamp.exists() and stamp.read_text() == wanted:
        return None
    print("clickhouse-test: installing chdb into .chdb (once; 0.5 GB)", flush=True)
    shutil.rmtree(CHDB, ignore_errors=True)
    options = ["--quiet", "--disable-pip-version-check", "--require-hashes", "--only-binary=:all:"]
    # What it needs besides is in .venv already.
    command = [str(PYTHON), "-m", "pip", "install", *options, "--no-deps", "--target", str(CHDB), "-r", str(LOCK)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        return f"its wheels did not arrive within {INSTALL_S} s"
    if done.returncode != 0:
        return f"its wheels cannot be had: {done.stderr.strip()[-300:]}"
    stamp.write_text(wanted)
    return None


def main() -> int:
    why_not = install()
    if why_not:
        print(f"clickhouse-test: LEFT OUT: {why_not}", flush=True)
        return 0
    env = {**os.environ, "PYTHONPATH": str(CHDB)}
    command = [str(PYTHON), "-m", "pytest", "-p", "no:randomly", "-k", "clickhouse or chdb", *TESTS, *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
