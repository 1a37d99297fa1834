"""Plain: a GGUF file as an ordinary Hugging Face folder with float32 weights."""

from __future__ import annotations

from pathlib import Path

from emotrace import checkpoints, disk


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
