from emotrace.circuits.allocation import allocate, even_allocation, published_allocation
from emotrace.circuits.assembly import assemble
from emotrace.circuits.circuit import Circuit
from emotrace.circuits.differences import difference_vectors
from emotrace.circuits.finding import PRESETS, discover

__all__ = [
    "PRESETS",
    "Circuit",
    "allocate",
    "assemble",
    "difference_vectors",
    "discover",
    "even_allocation",
    "published_allocation",
]
