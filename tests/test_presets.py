import pytest

from emotrace import circuits, presets
from emotrace.labels import EmotraceError


def test_presets_are_frozen_and_named():
    assert set(presets.PRESETS) == {"emotion_circuits", "emotion_vectors", "goemotions", "model_emotion"}
    assert presets.preset("emotion_circuits")["steering"]["strength"] == 8.0
    with pytest.raises(TypeError):
        presets.PRESETS["emotion_circuits"]["steering"]["strength"] = 1
    with pytest.raises(EmotraceError, match="Did you mean 'goemotions'"):
        presets.preset("goemotion")


def test_circuits_take_their_preset_from_the_table():
    assert set(circuits.PRESETS) == {"emotion_circuits"}
    assert circuits.PRESETS["emotion_circuits"] is presets.PRESETS["emotion_circuits"]["circuit"]
