"""Resolve requirements/*.lock anew: pinned, with hashes, for every supported Python, without any address."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = [f"--extra={name}" for name in ("local", "openai-vocabularies", "books", "kafka", "clickhouse")]
LOCKS = {
    "plugins.lock": ["pyproject.toml"],  # what a Kong node runs
    # what demo and tests run
    "dev.lock": [*EXTRAS, "pyproject.toml", "requirements/dev.in"],
    "chdb.lock": ["requirements/chdb.in", "--no-deps"],
    "build.lock": ["requirements/build.in", "--constraint=requirements/dev.lock"],  # what makes the images' wheel
    # what keeps the books; of the versions that the tests ran with
    "collector.lock": [
        *("--extra=books", "--extra=kafka", "--extra=clickhouse"),
        *("pyproject.toml", "--constraint=requirements/dev.lock"),
    ],
}


def main() -> int:
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        print("lock: needs uv (pip install uv)", file=sys.stderr)
        return 1
    for name, sources in LOCKS.items():
        options = ["--universal", "--python-version", "3.11", "--generate-hashes", "--quiet"]
        plain = ["--no-annotate", "--no-header"]
        output = ["--output-file", f"requirements/{name}"]
        subprocess.run([uv, "pip", "compile", *options, *plain, *sources, *output], check=True, cwd=ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
