"""Write what the plugins' schemas say elsewhere: the configuration page, JSON Schemas, the Lua plugins' fields.

`--check` only says whether they are up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kong_plugins.cli.plugin_schemas import generated
from kong_plugins.token_quota.reference import markdown

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# Configuration of `token-quota`

Made from the plugin's schema by `make docs`; Kong checks the same schema, and decK shows its field errors.
A row on a consumer replaces the row of its service or the global one as a whole.

"""


def main() -> int:
    pages = {ROOT / "docs" / "configuration.md": HEAD + markdown(), **generated(ROOT)}
    if "--check" in sys.argv[1:]:
        stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what the schemas say: run make docs", file=sys.stderr)
        return 1 if stale else 0
    for path, text in pages.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
