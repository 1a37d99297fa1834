"""Small plans, their arrays and stores, for the tests of this room."""

from types import SimpleNamespace

import numpy as np
import pytest

from emotrace import store


def rows(lengths, labels=None, replies=0):
    labels = labels or [{"emotion": ("anger", "fear")[i % 2], "n": i % 3} for i in range(len(lengths))]
    return store.Rows.of(
        [f"prompt_{i}" for i in range(len(lengths))],
        [[(7 * i + t) % 11 for t in range(n)] for i, n in enumerate(lengths)],
        [max(1, n - replies) for n in lengths],
        [range(n) for n in lengths],
        lambda i: f"tök{i}",
        labels,
    )


def residual(dim=8, layers=(0, 1, 3), **kwargs):
    coords = {"layer": layers, "sublayer": ["resid_mid", "resid_post"]}
    return store.Variable("residual", ("layer", "sublayer", "dim"), coords, {"dim": dim}, **kwargs)


def z(**kwargs):
    return store.Variable("z", ("layer", "head", "head_dim"), {"layer": [0, 1]}, {"head": 2, "head_dim": 4}, **kwargs)


def plan(lengths=(3, 5, 2, 7, 4), variables=None, attrs=None, **kwargs):
    kwargs.setdefault("max_rows", 4)
    return store.Plan.make(
        rows(lengths, replies=1), variables or [residual(), z()], attrs or {"model_id": "tiny"}, **kwargs
    )


def arrays(plan, seed=0):
    rng = np.random.default_rng(seed)
    return {v.name: rng.standard_normal(v.shape(plan.n_rows)).astype(v.dtype) for v in plan.variables}


def part(plan, whole, group):
    return {v.name: whole[v.name][(slice(None),) * len(v.cell_dims) + (group.rows,)] for v in plan.variables}


def write(path, plan, whole, groups=None):
    with store.create_or_resume(path, plan) as writer:
        for group in writer.pending():
            if groups is None or group.index in groups:
                buffers = writer.buffers(group)
                for name, values in part(plan, whole, group).items():
                    buffers[name][...] = values
                writer.submit(group, buffers)


def files(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def make():
    """The functions of this file."""
    return SimpleNamespace(
        rows=rows, residual=residual, z=z, plan=plan, arrays=arrays, part=part, write=write, files=files
    )


@pytest.fixture
def stored(tmp_path):
    """A complete store: (path, plan, arrays)."""
    p = plan()
    whole = arrays(p)
    write(tmp_path / "a.zarr", p, whole)
    return tmp_path / "a.zarr", p, whole
