"""emotrace: find where a language model computes emotion, and control the emotion it expresses.

    import emotrace as et

    model = et.load("meta-llama/Llama-3.2-3B-Instruct")
    prompts = et.datasets.sev("data/sev.jsonl")
    acts = et.capture(model, prompts, sites=("resid_mid", "resid_post"), positions="last", out="runs/activations.zarr")
    dirs = et.directions.centered_mean(acts, label="emotion", within=("skeleton_id", "valence"))
    edits = [et.Add("resid_post", layers=range(11, 21), vector=dirs.sel(emotion="anger"), strength=8, scale="rms")]
    replies = et.generate(model, et.datasets.sev("data/sev.jsonl", instruction=False), edits)

Rooms are imported when they are first used, so that reading a store does not load torch.
"""

from importlib.metadata import version as _version

from emotrace.lazy import attach

__version__ = _version("emotrace")
__getattr__, __dir__, __all__ = attach(__name__, __file__)
