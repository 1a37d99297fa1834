"""Names that are imported when they are first used: which there are, and what reading needs none of."""

import ast
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import nnsight  # noqa: F401  # gives every object a method
import pytest

import emotrace as et
from emotrace.lazy import MOVED
from emotrace.testing import tiny

ROOMS = (
    "attribution",
    "circuits",
    "discovery",
    "edits",
    "forwards.capturing",
    "interop",
    "prompt_tuning",
    "remote",
    "report",
    "sites",
    "suite",
)
MODELS = {"torch", "transformers", "nnsight", "openai"}
"""What runs models, here or elsewhere."""
SLOW = {"matplotlib", "sklearn", "scipy.stats", "scipy.linalg", "scipy.sparse"}
"""What takes long to import, and what only some functions need."""
if importlib.util.find_spec("dask"):  # where it is there, xarray imports its arrays, and these import that
    SLOW -= {"scipy.sparse"}
TABLES = {"pandas", "xarray", "zarr"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store, directions and a circuit."""
    folder = tmp_path_factory.mktemp("lazy")
    tiny.save("llama", folder / "model")
    model = et.load(folder / "model", device="cpu")
    prompts = et.datasets.sev(Path(__file__).parents[1] / "data" / "sev.jsonl", limit=2)
    acts = et.capture(model, prompts, sites=("resid_mid", "resid_post", "neuron"), out=folder / "acts.zarr")
    found = et.directions.centered_mean(acts, label="emotion", within=("skeleton_id", "valence"))
    et.directions.save(found, folder / "directions")
    et.circuits.discover(model, prompts, found, neurons_per_layer=2, heads_per_layer=1, out=folder / "circuit")
    et.edits.save_edits([et.Add("resid_post", layers=[1], vector=found.sel(emotion="fear"))], folder / "edits")
    return folder


def imported(code, folder):
    """Which of the packages a fresh interpreter has imported after some code, and what it said."""
    named = sorted(MODELS | SLOW | TABLES)
    code = f"import sys\n{code}\nprint(*[m for m in {named!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()), done.stdout


def commanded(folder, commands):
    """Which of the packages are imported after all of these commands, each of which says what it is to say."""
    code = f"""
from emotrace.cli import main
for command in {list(commands)!r}:
    sys.argv[1:] = command.split()
    print("said by", command)
    try:
        main()
    except SystemExit as end:
        assert not end.code, (command, end.code)
"""
    found, said = imported(code, folder)
    each = said.split("said by ")[1:]
    assert len(each) == len(commands)
    for (command, says), part in zip(commands.items(), each, strict=True):
        assert part.startswith(command)
        assert says in part.removeprefix(command), command
    return found


def test_help_and_version_need_no_large_package(folder):
    asked = {"--help": "truthfulqa", "--version": "emotrace ", "steer --help": "--dose", "vectors --help": "--queries"}
    assert not commanded(folder, asked)


def test_commands_that_read_a_store_need_no_model_library(folder):
    asked = {"info acts.zarr": "model_id", "ls acts.zarr": "residual", "verify acts.zarr": "intact"}
    asked |= {"repair acts.zarr": "intact", "directions acts.zarr --out made": "in made"}
    assert not commanded(folder, asked) & (MODELS | SLOW)


READING = """
import emotrace as et
from emotrace.lazy import MOVED
acts = et.open_activations("acts.zarr")
x = acts.sel(layer=slice(0, 1), sublayer="resid_post", emotion=["anger", "fear"]).compute()
assert len(acts.to_dataframe(sublayer="resid_post", layer=0, emotion="anger"))
made = et.directions.centered_mean(acts, label="emotion", within=("skeleton_id", "valence"))
assert made.equals(et.directions.load("directions"))
"""
SCORING = """
import emotrace as et
acts = et.open_activations("acts.zarr")
directions = et.directions.load("directions")
assert et.directions.project(acts, directions).size and et.directions.pca(acts).size and et.directions.mean_rms(acts).size
assert len(et.directions.context_agnosticism(acts))
assert len(et.circuits.difference_vectors(acts))
assert len(et.attribution.top_prompts(acts, 1, [3]))
found = et.prompt_tuning.concept_neurons(acts, over="skeleton_id")
assert et.rsa.rdm(found, "cosine", over="skeleton_id").size
"""
LOADING = """
import emotrace as et
from emotrace.lazy import MOVED
circuit = et.Circuit.load("circuit")
assert "fear" in str(circuit) and len(circuit.components)
(edit,) = et.edits.load_edits("edits")
assert isinstance(edit, et.Add) and et.edits.edits_digest([edit])
assert et.datasets.sev and et.judges.make("lexicon").judge(["I am afraid."])
"""


@pytest.mark.parametrize("code", [READING, LOADING])
def test_reading_what_was_made_needs_no_model_library(folder, code):
    assert not imported(code, folder)[0] & (MODELS | SLOW)


def test_what_is_computed_of_a_store_needs_no_model_library(folder):
    assert not imported(SCORING, folder)[0] & MODELS


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_every_name_is_there_and_is_what_its_module_has(room):
    module = importlib.import_module(f"emotrace.{room}".rstrip("."))
    names = module.__all__
    assert set(names) <= set(dir(module))
    for name in names:
        value = getattr(module, name)
        where = getattr(value, "__module__", None)
        assert where is None or where.startswith(("emotrace", "builtins", "typing")), (name, where)
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_the_kind'"):
        _ = module.nothing_of_the_kind


@pytest.mark.parametrize("room", ROOMS)
def test_no_name_is_hidden_by_a_module_or_by_what_nnsight_gives_every_object(room):
    module = importlib.import_module(f"emotrace.{room}")
    modules = {m.name for m in pkgutil.iter_modules(module.__path__)}
    stub = ast.parse(Path(str(module.__file__)).with_suffix(".pyi").read_text()).body
    rooms = {a.name for s in stub if isinstance(s, ast.ImportFrom) and s.module == module.__name__ for a in s.names}
    assert not modules & set(module.__all__) - rooms
    at_once = [s for s in ast.parse(Path(str(module.__file__)).read_text()).body if isinstance(s, ast.ImportFrom)]
    later = set(module.__all__) - {alias.name for s in at_once for alias in s.names}
    assert not later & set(dir(object))


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_the_stub_exports_what_it_imports(room):
    stub = Path(et.__file__).parent.joinpath(*room.split("."), "__init__.pyi")
    scope: dict = {}
    said = stub.read_text()
    exec(said[said.index("__all__") :], scope)
    module = importlib.import_module(f"emotrace.{room}".rstrip("."))
    assert sorted(scope["__all__"]) == module.__all__


@pytest.mark.parametrize(("old", "new"), sorted((o, n) for o, n in MOVED.items() if not o.endswith(".save")))
def test_a_name_that_moved_is_answered_with_its_new_place(old, new):
    room, _, name = old.rpartition(".")
    with pytest.warns(FutureWarning, match=f"{old} is now {new}"):
        found = getattr(importlib.import_module(room), name)
    home, _, name = new.rpartition(".")
    assert found is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = importlib.import_module(room).nonsense


@pytest.mark.parametrize("old", sorted(old for old in MOVED if old.endswith(".save")))
def test_a_save_that_moved_is_not_that_of_nnsight(old, monkeypatch):
    home, _, name = MOVED[old].rpartition(".")
    monkeypatch.setattr(importlib.import_module(home), name, lambda *args, **kwargs: (args, kwargs), raising=False)
    with pytest.warns(FutureWarning, match=f"{old} is now {MOVED[old]}") as caught:
        assert importlib.import_module(old.rpartition(".")[0]).save(1, name="a") == ((1,), {"name": "a"})
    assert caught[0].filename == __file__
