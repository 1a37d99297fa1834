"""Disk: whole files, locks, and what a file was made from; what is continued is compared, never guessed.

``digest`` names what made a thing; ``settle`` compares what a file was made with and what is wanted now: the same is
continued, anything else is refused with every difference named.
"""

from emotrace.disk.buckets import Bucket, is_url, url_of
from emotrace.disk.digests import digest
from emotrace.disk.located import Located, There, located, names_in, objects
from emotrace.disk.locks import Busy, lock, share
from emotrace.disk.machine import began, machine
from emotrace.disk.objects import Folder, Objects
from emotrace.disk.settings import MAY_DIFFER, Made, differences, plain, same_row, settle, settle_file
from emotrace.disk.whole import (
    PARTIAL,
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
from emotrace.lazy import public

__all__ = [
    "MAY_DIFFER",
    "PARTIAL",
    "Bucket",
    "Busy",
    "Folder",
    "Located",
    "Made",
    "Objects",
    "There",
    "began",
    "clear_leftovers",
    "differences",
    "digest",
    "free_bytes",
    "is_url",
    "located",
    "lock",
    "machine",
    "names_in",
    "objects",
    "partial",
    "plain",
    "replace_file",
    "same_row",
    "settle",
    "settle_file",
    "share",
    "sync_file",
    "sync_folder",
    "url_of",
    "write_json",
    "write_rows",
    "writing",
]

__dir__ = public(__name__)
