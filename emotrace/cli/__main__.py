"""``python -m emotrace.cli``."""

from emotrace.cli import main

main()
