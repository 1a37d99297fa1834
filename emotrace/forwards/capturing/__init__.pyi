from emotrace.forwards.capturing.reduce import reduced
from emotrace.forwards.capturing.run import capture

__all__ = ["capture", "reduced"]
