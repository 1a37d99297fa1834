from emotrace.prompt_tuning.answers import answer_ids
from emotrace.prompt_tuning.jobs import tune_all
from emotrace.prompt_tuning.layout import Layout
from emotrace.prompt_tuning.masked import masked_accuracy
from emotrace.prompt_tuning.masking import mask_edits, reference_values
from emotrace.prompt_tuning.neurons import activated_neurons, concept_neurons, concept_prompts, name_embeddings
from emotrace.prompt_tuning.prompts import SoftPrompt, as_edits, tuned_prompts
from emotrace.prompt_tuning.readouts import Readout, accuracy, readout
from emotrace.prompt_tuning.recipe import Recipe
from emotrace.prompt_tuning.tasks import Items, Task, binary, parted
from emotrace.prompt_tuning.tuning import tune

__all__ = [
    "Items",
    "Layout",
    "Readout",
    "Recipe",
    "SoftPrompt",
    "Task",
    "accuracy",
    "activated_neurons",
    "answer_ids",
    "as_edits",
    "binary",
    "concept_neurons",
    "concept_prompts",
    "mask_edits",
    "masked_accuracy",
    "name_embeddings",
    "parted",
    "readout",
    "reference_values",
    "tune",
    "tune_all",
    "tuned_prompts",
]
