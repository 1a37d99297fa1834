"""Hub: what a repository of the Hugging Face hub holds, and its files, continued where they were interrupted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import huggingface_hub
from huggingface_hub import constants, errors

from emotrace.fetching.sources import SourceFailure, check_room, sha256
from emotrace.files import read_json
from emotrace.known import OnHub, megabytes
from emotrace.labels import EmotraceError
from emotrace.secrets import redacted

WANTED: Final = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
"""Files of a model; no pickles, and no code."""
_SUBFOLDERS: Final = "*/*"
_SOURCE: Final = "the hub"
Tell = Callable[[str], None]


class File(NamedTuple):
    """A file of a repository."""

    name: str
    size: int
    sha256: str | None


class Listing(NamedTuple):
    """A repository at one commit."""

    commit: str
    licence: str
    files: list[File]


@contextmanager
def online() -> Iterator[None]:
    """Lift the offline switch."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def into_folder(wanted: OnHub, folder: Path, tell: Tell) -> None:
    """The files of a model of the table, in a folder of their own, and nothing else.

    Raises:
        SourceFailure: where the hub does not give them, or other weights.
    """
    where = f"{_SOURCE} ({wanted.repo})"
    with online(), _failing(where):
        _listing(wanted.repo, wanted.revision)
        check_room(folder, wanted.size)
        tell(f"fetching {wanted.repo} from the hub")
        _snapshot(wanted.repo, wanted.revision, local_dir=folder)
    for name, expected in wanted.sha256.items():
        found = sha256(folder / name) if (folder / name).is_file() else "no such file"
        if found != expected:
            (folder / name).unlink(missing_ok=True)
            raise SourceFailure(where, f"SHA-256 of {name} is {found}, not {expected}")
    _forget_download(folder)


def into_its_cache(repo: str, revision: str | None, file: str | None, tell: Tell) -> Path:
    """The files of any model, where transformers looks for them.

    Raises:
        EmotraceError: where the hub does not give them, or they are of no use.
    """
    there = _there(repo, revision, file)
    if there is not None:
        tell(f"{repo} lies at {there} already")
        return there
    where = f"{_SOURCE} ({repo})"
    try:
        with online(), _failing(where):
            listing = _listing(repo, revision)
            names = [f.name for f in listing.files]
            wanted = [f for f in listing.files if (not f.name.endswith(".gguf") if file is None else f.name == file)]
            _refuse_useless(repo, names, file)
            size = sum(f.size for f in wanted)
            tell(f"{repo} at commit {listing.commit}: {megabytes(size)}, licence {listing.licence}")
            tell(f"it will lie in {constants.HF_HUB_CACHE}")
            check_room(Path(constants.HF_HUB_CACHE), size)
            found = Path(_snapshot(repo, revision) if file is None else _one(repo, revision, file))
            for each in wanted:
                at = found if file is not None else found / each.name
                if each.sha256 is not None and sha256(at) != each.sha256:
                    at.resolve().unlink()
                    at.unlink(missing_ok=True)
                    raise SourceFailure(where, f"{each.name} is not the file that the hub describes; it was removed")
    except SourceFailure as failure:
        raise EmotraceError(redacted(f"{repo!r} could not be fetched. {failure.source}: {failure}.")) from failure
    tell(f"it lies at {found}: --model {found if file is not None else repo}")
    return found


def _there(repo: str, revision: str | None, file: str | None) -> Path | None:
    """Where it lies, if all of it does."""
    try:
        if file is not None:
            return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision, local_files_only=True))
        folder = Path(_snapshot(repo, revision, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    index = folder / "model.safetensors.index.json"
    shards = read_json(index)["weight_map"].values() if index.is_file() else ["model.safetensors"]
    return folder if all((folder / name).is_file() for name in ("config.json", *shards)) else None


def _refuse_useless(repo: str, names: list[str], file: str | None) -> None:
    packed = [n for n in names if n.lower().endswith(".gguf")]
    choices = f" GGUF files of it: {', '.join(packed)}." if packed else ""
    if file is not None and file not in packed:
        raise EmotraceError(f"{repo!r} has no GGUF file {file!r}.{choices}")
    if file is None and not ("config.json" in names and any(n.endswith(".safetensors") for n in names)):
        hint = f"{choices} Choose one with --file." if packed else " Pickles are not fetched."
        raise EmotraceError(f"{repo!r} holds no config.json with .safetensors.{hint}")


def _listing(repo: str, revision: str | None) -> Listing:
    info = huggingface_hub.HfApi(endpoint=_endpoint()).model_info(repo, revision=revision, files_metadata=True)
    card: Any = info.card_data
    licence = str(getattr(card, "license_name", None) or getattr(card, "license", None) or "not stated")
    chosen = huggingface_hub.utils.filter_repo_objects(
        info.siblings or [],
        allow_patterns=[*WANTED, "*.gguf"],
        ignore_patterns=[_SUBFOLDERS],
        key=lambda s: s.rfilename,
    )
    files = [File(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else None) for s in chosen]
    return Listing(str(info.sha), licence, files)


def _snapshot(repo: str, revision: str | None, **options: Any) -> str:
    return huggingface_hub.snapshot_download(
        repo,
        revision=revision,
        allow_patterns=list(WANTED),
        ignore_patterns=[_SUBFOLDERS],
        endpoint=_endpoint(),
        **options,
    )


def _one(repo: str, revision: str | None, file: str) -> str:
    return huggingface_hub.hf_hub_download(repo, file, revision=revision, endpoint=_endpoint())


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _forget_download(folder: Path) -> None:
    """Remove what the hub's library keeps to continue a download."""
    shutil.rmtree(folder / ".cache", ignore_errors=True)


@contextmanager
def _failing(where: str) -> Iterator[None]:
    """Turn whatever the hub and the network raise into one line: strangers' errors, of any class."""
    try:
        yield
    except (SourceFailure, EmotraceError):
        raise
    except errors.GatedRepoError:
        raise SourceFailure(where, "it is gated: accept its licence on its page, and log in (hf auth login)") from None
    except errors.RevisionNotFoundError:
        raise SourceFailure(where, "it has no such revision") from None
    except errors.RepositoryNotFoundError:
        raise SourceFailure(where, "no such repository, or one that needs a login (hf auth login)") from None
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise SourceFailure(where, f"{type(error).__name__}: {first}" if first else type(error).__name__) from error
