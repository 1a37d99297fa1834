"""Sockets: the server's end of a websocket."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from io import BufferedIOBase


class Socket:
    """The server's end of one websocket."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.lock = connection, threading.Lock()

    def send(self, opcode: int, payload: bytes) -> bool:
        """One frame; False if the client has gone."""
        size = len(payload)
        width = (0, 126, 127)[(size > 125) + (size > 0xFFFF)]
        head = struct.pack(
            {0: "!BB", 126: "!BBH", 127: "!BBQ"}[width], 0x80 | opcode, width or size, *[size] * bool(width)
        )
        try:
            with self.lock:
                self.connection.sendall(head + payload)
        except OSError:
            return False
        return True

    def listen(self, file: BufferedIOBase) -> None:
        """Answer pings until the client goes."""
        while len(head := file.read(2)) == 2:
            size = head[1] & 0x7F
            if size > 125:
                size = int.from_bytes(file.read(2 if size == 126 else 8), "big")
            mask, payload = file.read(4), file.read(size)
            payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
            opcode = head[0] & 0x0F
            if opcode in (8, 9):  # close is answered by close, ping by pong
                self.send(8 if opcode == 8 else 10, payload)
            if opcode == 8:
                return


def hang_up(connection: socket.socket) -> None:
    """Close a connection, and say nothing where it is closed."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
