"""Print what this package needs to run: name, version and licence of each; ``--sbom`` writes CycloneDX JSON.

Read from what is installed, by `importlib.metadata`: the requirements of monai-fp4, those of them, and so on.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(root: str) -> list[Distribution]:
    """The installed distributions that a distribution needs, sorted by name."""
    found: dict[str, Distribution] = {}
    waiting = [root]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # for another platform
            continue
        requirements = map(Requirement, found[name].requires or ())
        waiting += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    del found[canonicalize_name(root)]
    return [found[name] for name in sorted(found)]


def licence(package: Distribution) -> str:
    """What a distribution says of its licence: the SPDX expression, else its classifiers, else the first line."""
    about = package.metadata
    classifiers = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if line.startswith("License")]
    text = about.get("License-Expression") or ", ".join(classifiers) or (about.get("License") or "").partition("\n")[0]
    return text.strip() or "not stated"


def main() -> None:
    """Print the table, or the bill of materials."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sbom", action="store_true", help="CycloneDX JSON in place of a table")
    packages = needed("monai-fp4")
    if parser.parse_args().sbom:
        components = [
            {
                "type": "library", "name": package.name, "version": package.version,
                "purl": f"pkg:pypi/{canonicalize_name(package.name)}@{package.version}",
                "licenses": [{"license": {"name": licence(package)}}],
            }
            for package in packages
        ]  # fmt: skip
        print(json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.6", "components": components}, indent=2))
        return
    print("| Package | Version | Licence |\n|---|---|---|")
    for package in packages:
        print(f"| {package.name} | {package.version} | {licence(package)} |")


if __name__ == "__main__":
    main()
