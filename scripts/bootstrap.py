"""Make .venv with everything `make demo` and `make test` need, from the lock, on a machine with only Python and pip.

Standard library only. Does nothing when .venv already matches the lock. Debian's python3 comes without ensurepip, so a
venv may not be possible; then virtualenv is fetched into a folder of its own (allowed also where the system's Python is
marked as externally managed) and makes the environment instead.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements" / "dev.lock"
BOOTSTRAP = ROOT / ".bootstrap"
SUPPORTED = ((3, 11), (3, 12), (3, 13))
# Only bootstraps the environment; what runs in it comes from the lock.
VIRTUALENV = "virtualenv>=20.26"


def fingerprint() -> str:
    """What the environment was made from: the lock, the package's own metadata and the Python."""
    digest = hashlib.sha256()
    for path in (LOCK, ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    digest.update(str(sys.version_info[:3]).encode())
    return digest.hexdigest()


def supported_python() -> str | None:
    """A supported interpreter on PATH other than this one, newest first."""
    for major, minor in reversed(SUPPORTED):
        found = shutil.which(f"python{major}.{minor}")
        if found:
            return found
    return None


def make_venv() -> None:
    """Create an empty environment with pip."""
    shutil.rmtree(VENV, ignore_errors=True)
    try:
        import ensurepip  # noqa: F401 Debian splits it off; venv would fail half-way without it

        venv.create(VENV, with_pip=True, symlinks=True)
    except (ImportError, subprocess.CalledProcessError):
        print("bootstrap: no ensurepip here, making the environment with virtualenv", flush=True)
        shutil.rmtree(VENV, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(BOOTSTRAP), VIRTUALENV]
        subprocess.run(pip, check=True)
        env = {**os.environ, "PYTHONPATH": str(BOOTSTRAP)}
        subprocess.run([sys.executable, "-m", "virtualenv", "--quiet", str(VENV)], check=True, env=env)


def main() -> int:
    if sys.version_info[:2] not in SUPPORTED:
        other = supported_python()
        if other:
            os.execv(other, [other, __file__])
        print(
            f"bootstrap: Python {sys.version_info[0]}.{sys.version_info[1]} is not supported; "
            "install python3.11, python3.12 or python3.13 and run make again",
            file=sys.stderr,
        )
        return 1
    stamp = VENV / ".made-from"
    wanted = fingerprint()
    if stamp.exists() and stamp.read_text() == wanted:
        return 0
    print("bootstrap: making .venv from requirements/dev.lock (once; about a minute)", flush=True)
    make_venv()
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "-r", str(LOCK)], check=True)
    subprocess.run([*pip, "--no-build-isolation", "--no-deps", "--editable", str(ROOT)], check=True)
    stamp.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
