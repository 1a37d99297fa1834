from emotrace.remote.backends import Backend, Remote, Simulated
from emotrace.remote.jobs import Request
from emotrace.remote.server import Server

__all__ = ["Backend", "Remote", "Request", "Server", "Simulated"]
