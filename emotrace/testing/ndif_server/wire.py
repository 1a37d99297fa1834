"""Wire: messages between the process that holds a model and the one that runs a block, and what they weigh."""

from __future__ import annotations

import io
import pickle
import socket
import struct
from typing import Any

HEAD = struct.Struct(">Q")


class Wire:
    """One end of a connection; tensors cross by value, and no code: a class crosses by its name, which the other end imports.

    Args:
        connection: to the other end.

    Attributes:
        sent: bytes.
        received: bytes.
        last: bytes of the message received last.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.sent = self.received = self.last = 0

    def send(self, kind: str, *content: Any) -> None:
        """One message."""
        data = pickle.dumps((kind, *content))
        self.connection.sendall(HEAD.pack(len(data)) + data)
        self.sent += len(data)

    def receive(self) -> tuple[Any, ...]:
        """The next message.

        Raises:
            EOFError: where the other end is gone.
        """
        (size,) = HEAD.unpack(self._exactly(HEAD.size))
        data = self._exactly(size)
        self.received, self.last = self.received + size, size
        return pickle.loads(data)

    def close(self) -> None:
        """Let go."""
        self.connection.close()

    def _exactly(self, size: int) -> bytes:
        with io.BytesIO() as held:
            while (missing := size - held.tell()) > 0:
                part = self.connection.recv(min(missing, 1 << 20))
                if not part:
                    raise EOFError("the other process is gone")
                held.write(part)
            return held.getvalue()
