"""Serving: the process, from its flags on."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import torch
import transformers

from emotrace.testing.ndif_server import models
from emotrace.testing.ndif_server.deployments import STATES
from emotrace.testing.ndif_server.loopback import Loopback
from emotrace.testing.ndif_server.modes import MODES
from emotrace.testing.ndif_server.requests import FORM, handler, is_key
from emotrace.testing.ndif_server.sandbox import Sandbox
from emotrace.testing.ndif_server.theirs import Theirs


def parser() -> argparse.ArgumentParser:
    """The flags."""
    found = argparse.ArgumentParser(
        "ndif_server", description="nnsight's remote protocol on 127.0.0.1; it executes pickles."
    )
    found.add_argument("--model", action="append", required=True, metavar="[NAME=]DIR", help="repeat for several")
    found.add_argument("--port", type=int, default=0)
    found.add_argument("--key", help="$NDIF_API_KEY, or random")
    found.add_argument("--trusted-key", help="whose blocks run beside the weights; random")
    found.add_argument("--dtype", default="float32", help="of the weights; auto is that of each checkpoint")
    found.add_argument("--threads", type=int, help="of torch")
    found.add_argument(
        "--attached", action="store_true", help="both keys are the first line of standard input; end when it closes"
    )
    found.add_argument("--no-gradients", action="store_true")
    found.add_argument("--copies", action="store_true")
    found.add_argument("--autocast", metavar="DTYPE")
    found.add_argument(
        "--expire-urls", type=float, metavar="SECONDS", nargs="?", const=0.0, default=MODES["expire_urls"]
    )
    found.add_argument("--window", type=float, metavar="SECONDS", default=MODES["window"])
    found.add_argument("--deploy-seconds", type=float, metavar="SECONDS", default=MODES["deploy_seconds"])
    found.add_argument("--state", action="append", default=[], metavar="NAME=STATE", help=f"of {', '.join(STATES)}")
    found.add_argument(
        "--ndif-src", type=Path, metavar="DIR", help="checkout of NDIF's server, whose sandbox runs blocks"
    )
    found.add_argument("--execution-timeout", type=float, metavar="SECONDS")
    found.add_argument("--inline-limit", type=int, metavar="BYTES", default=MODES["inline_limit"])
    return found


def main(arguments: list[str] | None = None) -> None:
    """Serve until killed; from here on this process cannot import emotrace."""
    for name in {"emotrace", *(name for name in sys.modules if name.startswith("emotrace."))}:
        sys.modules[name] = None  # type: ignore[assignment]
    options = vars(parser().parse_args(arguments))
    given = os.environ.pop("NDIF_API_KEY", None)  # blocks of clients run here
    transformers.utils.logging.disable_progress_bar()
    threads = options["threads"] or torch.get_num_threads()
    split = [given.rpartition("=") for given in options["model"]]
    directories = {name or directory: Path(directory) for name, _, directory in split}
    theirs = options["ndif_src"]
    sandbox = Theirs(theirs, directories) if theirs else Sandbox(directories, options["dtype"], threads)
    keys = _keys(options, given)  # when there is a process for blocks, which so has none of them
    torch.set_num_threads(threads)
    up = {name: models.load(directory, options["dtype"]) for name, directory in directories.items()}
    modes = {m: options.get(m, MODES[m]) for m in MODES}
    server = Loopback(up, keys, options["port"], modes, handler, sandbox)
    for name, _, state in (given.rpartition("=") for given in options["state"]):
        server.deployments[name].order(state, None)
    if options["attached"]:
        threading.Thread(target=_end_with_input, daemon=True).start()
    told = {"url": server.url, "key": keys[0], "trusted_key": keys[1], "models": list(up)}
    print(json.dumps(told), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.work()


def _keys(options: dict[str, Any], given: str | None) -> tuple[str, str]:
    """An ordinary key, and a trusted one."""
    if options["attached"]:
        key, _, trusted = sys.stdin.readline().strip().partition(" ")
    else:
        key = options["key"] or given or str(uuid.uuid4())
        trusted = options["trusted_key"] or str(uuid.uuid4())
    if not (is_key(key) and is_key(trusted)):
        raise SystemExit(f"the key is none: keys are of the form {FORM}")
    return key, trusted


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)
