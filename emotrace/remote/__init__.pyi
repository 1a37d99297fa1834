from emotrace.remote.jobs import Request
from emotrace.remote.place import Place, Remote, Simulated
from emotrace.remote.server import Server

__all__ = ["Place", "Remote", "Request", "Server", "Simulated"]
