from emotrace.attribution.ablations import mean_ablation, resample_ablation, zero_ablation
from emotrace.attribution.curves import ablation_curve, enhancement_curve
from emotrace.attribution.downstream import gradient_influence
from emotrace.attribution.exemplars import top_prompts
from emotrace.attribution.files import load_scores, save_scores
from emotrace.attribution.heads import head_contributions
from emotrace.attribution.lens import logit_lens
from emotrace.attribution.mediation import logit_mediation, telling_tokens
from emotrace.attribution.neurons import neuron_contributions
from emotrace.attribution.ranks import planted_auroc, top
from emotrace.attribution.reference import layer_block, local_directions, reference_direction, stable_block
from emotrace.attribution.seen import covectors
from emotrace.attribution.sublayers import sublayer_influence
from emotrace.attribution.views import attention, top_tokens
from emotrace.attribution.vocabulary import token_covectors
from emotrace.attribution.weights import OutputProjection, output_projection
from emotrace.forwards.streams import stream
from emotrace.forwards.sums import Sums

__all__ = [
    "OutputProjection",
    "Sums",
    "ablation_curve",
    "attention",
    "covectors",
    "enhancement_curve",
    "gradient_influence",
    "head_contributions",
    "layer_block",
    "load_scores",
    "local_directions",
    "logit_lens",
    "logit_mediation",
    "mean_ablation",
    "neuron_contributions",
    "output_projection",
    "planted_auroc",
    "reference_direction",
    "resample_ablation",
    "save_scores",
    "stable_block",
    "stream",
    "sublayer_influence",
    "telling_tokens",
    "token_covectors",
    "top",
    "top_prompts",
    "top_tokens",
    "zero_ablation",
]
