"""Ranks: one piece of work taken by several processes, of one machine or many, that end with the bytes of one process."""

from emotrace.lazy import public
from emotrace.ranks.leases import Leases
from emotrace.ranks.rank import ALONE, Rank, checked, chosen, taking
from emotrace.ranks.shares import Shares, name_of
from emotrace.ranks.workers import on_workers

__all__ = [
    "ALONE",
    "Leases",
    "Rank",
    "Shares",
    "checked",
    "chosen",
    "name_of",
    "on_workers",
    "taking",
]

__dir__ = public(__name__)
