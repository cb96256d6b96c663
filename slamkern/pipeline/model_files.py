"""Files that transformers reads beside a configuration without being asked to: what must not be among them.

An adapter, with which PEFT's account of the weights replaces that of transformers; weights, links and templates from
outside the model's folder, whose changes nobody sees; a pipe, which is waited for; ids of an end that are no ids.
"""

from pathlib import Path
from typing import Any

from slamkern.errors import SlamkernError
from slamkern.reading import read_json

ADAPTER = "adapter_config.json"
TEMPLATES = "additional_chat_templates"


def check_links(folder: Path) -> None:
    """SlamkernError for a link out of the folder, but to weights, and for a chat template that is no file."""
    # A snapshot of the hub's cache is made of links into blobs/ beside it.
    home = folder.parent.parent if folder.parent.name == "snapshots" else folder
    templates = list((folder / TEMPLATES).glob("*.jinja"))
    for path in (*folder.iterdir(), *templates):
        weights = path.suffix in (".safetensors", ".gguf")
        if path.is_symlink() and not weights and not path.resolve().is_relative_to(home.resolve()):
            raise SlamkernError(f"{path} is a link to {path.resolve()}, outside of the model's folder; copy it there")
    for path in templates:
        _check_regular(path)


def check_no_adapter(source: str, commit: str | None) -> None:
    """SlamkernError for a folder or a hub id that holds an adapter too."""
    if _find(source, ADAPTER, commit) is not None:
        raise SlamkernError(
            f"{source} holds an adapter ({ADAPTER}); move it to a folder of its own and put it into the weights:"
            " slamkern delta fold makes a delta of it"
        )


def check_shards(source: str, config: Any, *, allow_pickle: bool) -> None:
    """SlamkernError for weights that are no files directly in the folder or hub id, or not in a format allowed."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME

    named = getattr(config, "transformers_weights", None)
    if named is not None:
        _check_name(named, f"{source}/config.json", (".safetensors", ".safetensors.index.json"))
        _check_regular(Path(source, named))
    names = [named] if named is not None else [SAFE_WEIGHTS_INDEX_NAME, *([WEIGHTS_INDEX_NAME] * allow_pickle)]
    for name in names:
        path = _find(source, name, getattr(config, "_commit_hash", None)) if name.endswith(".index.json") else None
        if path is None:
            continue
        index = read_json(path)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise SlamkernError(f"{path} has no weight_map from names of weights to names of files")
        for shard in sorted(set(shards.values())):
            _check_name(shard, str(path), (".bin",) if name == WEIGHTS_INDEX_NAME else (".safetensors",))
            _check_regular(Path(source, shard))


def check_ends(model: Any, spec: str) -> None:
    """SlamkernError where the ids that end a text are not one whole number or a list of them."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(number) is int and abs(number) < 2**63 for number in ids):
        raise SlamkernError(f"model {spec!r} has eos_token_id {found!r:.80}; expected a token's id or a list of them")


def _find(source: str, name: str, commit: str | None) -> Path | None:
    """The file of a folder or a hub id; None where there is none."""
    if Path(source).is_dir():
        return path if (path := Path(source, name)).exists() else None
    from transformers.utils import cached_file

    # With the commit, what is known to be absent is not asked for again.
    found = cached_file(
        source, name, _commit_hash=commit, _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return None if found is None else Path(found)


def _check_name(name: object, where: str, endings: tuple[str, ...]) -> None:
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(endings):
        ends = " or ".join(endings)
        raise SlamkernError(f"{where} names the file {name!r:.200}; expected a name beside it that ends in {ends}")


def _check_regular(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise SlamkernError(f"{path} is no regular file")
