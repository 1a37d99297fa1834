from emotrace.edits.files import edits_digest, load_edits, save_edits
from emotrace.edits.kinds import EDITS, Ablate, Add, Edit, Project, Scale
from emotrace.edits.lowering import Lowered, check, lower, reached, refuse_silent, refuse_unreached
from emotrace.edits.mixtures import mixture
from emotrace.edits.naming import edits_label

__all__ = [
    "EDITS",
    "Ablate",
    "Add",
    "Edit",
    "Lowered",
    "Project",
    "Scale",
    "check",
    "edits_digest",
    "edits_label",
    "load_edits",
    "lower",
    "mixture",
    "reached",
    "refuse_silent",
    "refuse_unreached",
    "save_edits",
]
