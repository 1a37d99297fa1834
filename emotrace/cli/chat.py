"""Chat: a conversation in the terminal, or with a pipe, under a mixture that may change between turns."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from emotrace import arguments
from emotrace.cli.app import app
from emotrace.cli.groups import Decoding, Loading, grouped
from emotrace.cli.mixes import PlacedAddition, Vectors, vectors_of
from emotrace.cli.options import MODEL, System
from emotrace.labels import EmotraceError, unknown

if TYPE_CHECKING:
    from emotrace.forwards.conversation import Conversation

COMMANDS = {
    "/mix": "/mix anger=0.5,joy=-1   change the mixture; /mix alone shows it, /mix none takes it away",
    "/strength": "/strength 0.5           change the factor of the mixture",
    "/side": "/side on | off          show the reply of the model as it is beside the steered one",
    "/seed": "/seed 7                 change the seed of sampling",
    "/reset": "/reset                  forget what was said; the mixture stays",
    "/help": "/help                   this list",
    "/quit": "/quit                   end (also /exit, or the end of the input)",
}
LONG = Decoding(max_new_tokens=200)


@app.command()
@grouped
def chat(
    *,
    model: Annotated[str, typer.Argument(help=MODEL)],
    vectors: Vectors,
    mix: Annotated[str, typer.Option(help="weights by name: joy=1 or anger=0.5,joy=-0.5; default none")] = "",
    addition: PlacedAddition,
    system: System = None,
    side: Annotated[bool, typer.Option(help="show the model as it is beside the steered one")] = False,
    decoding: Decoding = LONG,
    loading: Loading,
) -> None:
    """Talk with a steered model; /help lists what may be changed between turns."""
    from emotrace.forwards.conversation import Conversation

    options, where = decoding.options, addition.options
    found = vectors_of(vectors)
    lm = loading.load(model)
    talk = Conversation(lm, found, mix, system=system, seed=decoding.seed, decoding=options, **where)
    typer.echo(f"{model}, emotions {', '.join(talk.emotions)}; {talk.label}. /help for commands.")
    Terminal(talk, side).run()


class Terminal:
    """Reads lines, prints replies as they grow; a mistake is one line and ends nothing.

    Args:
        talk: the conversation.
        side: show the model as it is beside the steered reply.
    """

    def __init__(self, talk: Conversation, side: bool = False) -> None:
        self.talk, self.side = talk, side

    def run(self) -> None:
        """Until /quit or the end of the input."""
        for line in _lines():
            try:
                if line.startswith("/"):
                    if not self.command(line):
                        return
                elif line:
                    self.turn(line)
            except EmotraceError as error:
                typer.echo(f"error: {' '.join(str(error).split())}")

    def turn(self, text: str) -> None:
        """One turn: perhaps the model as it is, then the steered reply, which is the one that is remembered."""
        if self.side and self.talk.edits:
            with _interruptible() as stopped:
                typer.echo("base: ", nl=False)
                self.talk.answer(text, _tell, stopped.is_set, steered=False)
                typer.echo()
            if stopped.is_set():
                return
        with _interruptible() as stopped:
            typer.echo(f"{self.talk.label}: ", nl=False)
            self.talk.say(text, _tell, stopped.is_set)
            typer.echo()

    def command(self, line: str) -> bool:
        """Carry out a slash command; False to end."""
        word, _, rest = line.partition(" ")
        word, rest = {"/exit": "/quit", "/?": "/help"}.get(word, word), rest.strip()
        if word not in COMMANDS:
            raise unknown("command", word, COMMANDS, "chat")
        if word == "/quit":
            return False
        if word == "/help":
            typer.echo("\n".join(COMMANDS.values()))
        elif word == "/reset":
            self.talk.reset()
            typer.echo("forgotten")
        elif word == "/side":
            if rest not in ("on", "off"):
                raise unknown("choice", rest, ("on", "off"), "/side")
            self.side = rest == "on"
            typer.echo(f"side by side: {rest}")
        elif word == "/seed":
            if not (rest.isascii() and rest.isdigit()):
                raise EmotraceError(f"/seed {rest!r}: a whole number from 0 is due.")
            self.talk.seed = arguments.seed("/seed", int(rest[:20]))
            typer.echo(f"seed {self.talk.seed}")
        else:
            if word == "/strength":
                self.talk.strength = _number(rest, word)
            elif rest:
                self.talk.mix = {} if rest == "none" else rest
            typer.echo(self.talk.label)
        return True


def _lines() -> Iterator[str]:
    """Lines of the user: asked for in a terminal, else read as they are."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    while True:
        try:
            yield input("you: ").strip()
        except EOFError:
            typer.echo()
            return


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C ends the reply, not the conversation: it sets the event."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.signal(signal.SIGINT, lambda *_: stopped.set())
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _tell(piece: str) -> None:
    typer.echo(piece, nl=False)
    sys.stdout.flush()


def _number(text: str, word: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise EmotraceError(f"{word} {text!r}: a number is due.") from None
    return arguments.number(word, value)
