"""Print every package of an environment with its licence: Python's, then Debian's (where dpkg is). Tab-separated.

The image is built with it (``/opt/bidsapp/packages.tsv``): ``python packages.py SITE_PACKAGES``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

#: Words by which the common licences are known in Debian's copyright files that are not machine-readable.
COMMON = re.compile(r"/usr/share/common-licenses/([\w.+-]*\w)")


def main() -> None:
    """Write the table to the standard output."""
    print("kind\tname\tversion\tlicence")
    found = {dist.metadata["Name"].lower(): dist for dist in distributions(path=sys.argv[1:] or sys.path)}
    for name in sorted(found):
        print("python", name, found[name].version, python_licence(found[name]), sep="\t")
    if shutil.which("dpkg-query"):
        listed = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Package}\t${Version}\n"], capture_output=True, text=True, check=True
        )
        for line in sorted(listed.stdout.splitlines()):
            print("debian", line, debian_licence(line.partition("\t")[0]), sep="\t")


def python_licence(dist: Distribution) -> str:
    """Licence a Python package states: the expression, else its classifiers, else the first words of the field."""
    about = dist.metadata
    expression = about.get("License-Expression")
    if expression:
        return str(expression)
    classifiers = [text.rpartition(" :: ")[2] for text in about.get_all("Classifier") or () if "License ::" in text]
    named = [text for text in classifiers if text != "OSI Approved"]
    if named:
        return "; ".join(named)
    words = " ".join(str(about.get("License") or "").split())
    return words[:60] or "unknown"


def debian_licence(package: str) -> str:
    """Licences that a Debian package's copyright file names."""
    try:
        text = Path(f"/usr/share/doc/{package}/copyright").read_text(errors="replace")
    except OSError:
        return "unknown"
    names = re.findall(r"^License:[ \t]*(\S[^\n]*)$", text, re.MULTILINE) or COMMON.findall(text)
    return "; ".join(dict.fromkeys(name.strip() for name in names)) or "see its copyright file"


if __name__ == "__main__":
    main()
