from emotrace.forwards.capturing.reduce import reduced
from emotrace.forwards.capturing.run import Dry, capture

__all__ = ["Dry", "capture", "reduced"]
