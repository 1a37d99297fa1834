"""Plain: a GGUF file as an ordinary Hugging Face folder with float32 weights."""

from __future__ import annotations

from pathlib import Path

from emotrace import checkpoints, disk
from emotrace.files import read_json
from emotrace.texts import to_json


def write_plain(file: Path, folder: Path) -> None:
    """De-quantise a GGUF file; weights, configuration, tokenizer and chat template as `emotrace.load` of the file has them.

    Args:
        file: the GGUF file.
        folder: to be made.

    Raises:
        EmotraceError: for a file that cannot be loaded.
    """
    module = checkpoints.from_pretrained(str(file), "cpu", "float32", None, None, None, False)
    tokenizer = checkpoints.tokenizer_of(str(file), None, False)
    with disk.writing(folder):
        module.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
            about = folder / "tokenizer_config.json"
            said = {k: v for k, v in tokenizer.init_kwargs.items() if k == "add_bos_token"}  # which saving drops
            about.write_text(to_json(read_json(about) | said, indent=2), "utf-8")
