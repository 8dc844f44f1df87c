"""Write docs/configuration.md from the plugin's schema. `--check` only says whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from kong_plugins.token_quota.reference import markdown

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration of `token-quota`

Made from the plugin's schema by `make docs`; Kong checks the same schema, and decK shows its field errors.
A row on a consumer replaces the row of its service or the global one as a whole.

"""


def main() -> int:
    text = HEAD + markdown()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text() != text:
            print("docs/configuration.md is not what the schema says: run make docs", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
