"""Run as ``python -m emotrace.testing.ndif_server`` or by the path of this folder, which asks for no ``PYTHONPATH``."""

import sys
from pathlib import Path


def run() -> None:
    """Serve, with nothing on the path of imports but what is installed."""
    sys.path[0] = str(Path(__file__).resolve().parents[3])  # instead of this folder, or the working directory
    from emotrace.testing.ndif_server.serving import main

    sys.path[:] = [path for path in sys.path[1:] if path]
    main()


if __name__ == "__main__":
    run()
