"""The version of the package, in the one place that both the build and the files it writes read; those of others."""

import importlib.metadata

__version__ = "0.1.0"


def installed_version(name: str) -> str | None:
    """The version of a package, torch's with the build it is of (+cu130); None where it is not installed."""
    if name == "torch":
        import torch

        return str(torch.__version__)
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
