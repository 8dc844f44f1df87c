"""The scripted Kong stands beside token-quota's tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "token_quota"))
