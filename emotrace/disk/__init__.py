"""Disk: whole files, locks, and what a file was made from; what is continued is compared, never guessed.

``digest`` names what made a thing; ``settle`` compares what a file was made with and what is wanted now: the same is
continued, anything else is refused with every difference named.
"""

from emotrace.disk.digests import digest
from emotrace.disk.locks import lock
from emotrace.disk.settings import Made, differences, plain, same_row, settle, settle_file
from emotrace.disk.whole import (
    clear_leftovers,
    free_bytes,
    partial,
    replace_file,
    sync_file,
    sync_folder,
    write_json,
    write_rows,
    writing,
)

__all__ = [
    "Made",
    "clear_leftovers",
    "differences",
    "digest",
    "free_bytes",
    "lock",
    "partial",
    "plain",
    "replace_file",
    "same_row",
    "settle",
    "settle_file",
    "sync_file",
    "sync_folder",
    "write_json",
    "write_rows",
    "writing",
]
