"""A stand-in for a checkout of NDIF's server: the names that the harness uses, and blocks run beside the model."""

from __future__ import annotations

from pathlib import Path

HOST = '''
class Runner:
    def __init__(self, model_key):
        assert model_key.startswith("nnsight.modeling.transformers.TransformersModel:{"), model_key

    def connection(self):
        return self

    def send(self, message):
        self.blob, self.compress, self.dtype, self.seed, self.env = message

    def close(self):
        """Nothing is open."""

    stop = close


def spawn(python=None, quiet=True, model_key=None):
    return Runner(model_key)
'''
DRIVER = '''
import io, linecache, traceback
import torch
from nnsight.schema.request import RequestModel
from nnsight.tracing.globals import BLOCKS, SOURCES
from nnsight.tracing.tracer import _saves, dec, inc


class RunnerError(Exception):
    """A block failed; the words are its traceback."""


class SandboxDriver:
    def __init__(self, model, dtype, on_log=None):
        self.model, self.dtype, self.say = model, dtype, on_log

    def pump(self, connection):
        assert connection.dtype == str(self.dtype), (connection.dtype, self.dtype)
        self.say("by the stand-in")
        lines = dict(linecache.cache)  # the block's source takes the place of its file's
        tracer = RequestModel.deserialize(
            connection.blob, self.model._remoteable_persistent_objects(), connection.compress
        )
        inc()
        try:
            tracer.execute(tracer.info.code)
            saved = {k: v for k, v in tracer.info.frame.f_locals.items() if id(v) in _saves()}
        except Exception:
            raise RunnerError(traceback.format_exc()) from None
        finally:
            dec()
            linecache.cache.clear(), SOURCES.clear(), BLOCKS.clear()
            linecache.cache.update(lines)
        file = io.BytesIO()
        torch.save(saved, file)
        return file.getvalue(), 0.0
'''


def checkout(folder: Path) -> Path:
    """The folder, made into one."""
    package = folder / "src" / "ndif" / "services" / "ray" / "sandbox"
    package.mkdir(parents=True)
    for part in (package, *list(package.parents)[:3]):
        (part / "__init__.py").write_text("")
    (package / "host.py").write_text(HOST)
    (package / "driver.py").write_text(DRIVER)
    return folder
