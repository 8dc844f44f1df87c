"""Where the files beside the Python package are."""

from __future__ import annotations

import sys
from pathlib import Path


def source_root() -> Path:
    """Where kong/ and vllm/ are: the source tree, or what an installed package put under its prefix."""
    tree = Path(__file__).resolve().parent.parent.parent
    return tree if (tree / "kong" / "plugins").is_dir() else Path(sys.prefix) / "share" / "token-quota"
