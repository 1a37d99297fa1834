"""Discovery: which nodes and edges of a model carry an emotion, with the projection on its direction as the metric.

    pairs = discovery.other_emotion(model, prompts)
    metric = discovery.Projection(directions, layer=4)
    found = discovery.scores(model, pairs, metric, method="eap_ig_activations", level="edge")

Sign everywhere: positive means that the component raises the metric; removing it lowers it.
"""

from emotrace.lazy import attach, renamed

__getattr__, __dir__, __all__ = attach(__name__, __file__)
save = renamed(__name__, "save")
