from emotrace.interop.baking import bake
from emotrace.interop.control_vectors import read_control_vectors, read_steering, write_control_vector, write_steering
from emotrace.interop.differences import read_differences, write_differences
from emotrace.interop.published import read_activations, read_directions, read_sigma, read_similarity, write_directions
from emotrace.interop.replies import read_replies, write_replies
from emotrace.interop.tables import (
    read_circuit,
    read_heads,
    read_importance,
    read_neurons,
    write_circuit,
    write_heads,
    write_neurons,
)
from emotrace.interop.vectors import (
    read_difference_matrix,
    read_emotion_vectors,
    write_difference_matrix,
    write_emotion_vectors,
)

__all__ = [
    "bake",
    "read_activations",
    "read_circuit",
    "read_control_vectors",
    "read_difference_matrix",
    "read_differences",
    "read_directions",
    "read_emotion_vectors",
    "read_heads",
    "read_importance",
    "read_neurons",
    "read_replies",
    "read_sigma",
    "read_similarity",
    "read_steering",
    "write_circuit",
    "write_control_vector",
    "write_difference_matrix",
    "write_differences",
    "write_directions",
    "write_emotion_vectors",
    "write_heads",
    "write_neurons",
    "write_replies",
    "write_steering",
]
