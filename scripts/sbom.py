"""A software bill of materials (CycloneDX 1.6, JSON) of the locks: what is installed, by name, version and hash.

Of the locks and not of an environment, so that it is the same everywhere; no time and no random number is in it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tomllib
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("plugins.lock", "collector.lock")  # what an operator runs; dev.lock is what the tests run with

_PINNED = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)(?:\s*;\s*([^\\]+))?")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def components(lock: Path) -> list[dict[str, Any]]:
    """Of each pinned package; a marker (which platforms or Pythons it is for) is a property.

    Raises:
        ValueError: a line that is no pin with hashes.
    """
    found = []
    for entry in re.split(r"\n(?=\S)", lock.read_text().strip()):
        if entry.startswith("#"):
            continue
        pinned, hashes = _PINNED.match(entry), sorted(_HASH.findall(entry))
        if pinned is None or not hashes:
            raise ValueError(
                f"{lock.name}: not pinned with a hash: {entry[:80]!r}; make the locks anew with `make lock`"
            )
        name, version, marker = pinned[1], pinned[2], (pinned[3] or "").strip()
        purl = f"pkg:pypi/{name}@{version}"
        component: dict[str, Any] = {
            "type": "library",
            "bom-ref": f"{purl}#{hashlib.sha256(marker.encode()).hexdigest()[:8]}" if marker else purl,
            "name": name,
            "version": version,
            "purl": purl,
            "hashes": [{"alg": "SHA-256", "content": each} for each in hashes],
        }
        if marker:
            component["properties"] = [{"name": "python:marker", "value": marker}]
        found.append(component)
    return sorted(found, key=lambda each: each["bom-ref"])


def bill(locks: list[Path]) -> dict[str, Any]:
    """All locks together; a package that two of them pin alike is there once."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    merged: dict[str, dict[str, Any]] = {}
    for lock in locks:
        for each in components(lock):
            merged.setdefault(each["bom-ref"], each)
    content = json.dumps(merged, sort_keys=True)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": project["name"],
                "name": project["name"],
                "version": project["version"],
            }
        },
        "components": [merged[ref] for ref in sorted(merged)],
        "dependencies": [{"ref": project["name"], "dependsOn": sorted(merged)}],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "locks", nargs="*", default=LOCKS, metavar="LOCK", help="in requirements/ (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "sbom.cdx.json", help="default: %(default)s")
    options = parser.parse_args()
    try:
        made = bill([ROOT / "requirements" / name for name in options.locks])
    except (ValueError, OSError) as error:
        print(f"sbom: {error}", file=sys.stderr)
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(made, indent=2, sort_keys=True) + "\n")
    print(f"{len(made['components'])} packages in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
