"""Store: labelled activations on disk; planned, written in committed row groups, opened lazily, selected by label."""

from emotrace.lazy import public
from emotrace.store.activations import Activations, open_activations
from emotrace.store.checks import Damage
from emotrace.store.mending import repair
from emotrace.store.opening import create_or_resume
from emotrace.store.plan import Plan, PromptRows, RowGroup
from emotrace.store.rows import Rows, check_labels
from emotrace.store.variable import Variable
from emotrace.store.verify import begun, info, ls, verify
from emotrace.store.writer import Writer

__all__ = [
    "Activations",
    "Damage",
    "Plan",
    "PromptRows",
    "RowGroup",
    "Rows",
    "Variable",
    "Writer",
    "begun",
    "check_labels",
    "create_or_resume",
    "info",
    "ls",
    "open_activations",
    "repair",
    "verify",
]

__dir__ = public(__name__)
