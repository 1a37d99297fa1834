"""What a caller gives is taken as it is meant, or refused."""

import numpy as np
import pytest
import torch

from emotrace import arguments as a
from emotrace.labels import EmotraceError

REFUSED = {
    "a float for a count": (lambda: a.whole("n", 2.0), "n=2.0: a whole number is due"),
    "a bool for a count": (lambda: a.whole("n", True), "n=True"),
    "numpy's bool": (lambda: a.whole("n", np.bool_(True)), "whole number"),
    "a text for a count": (lambda: a.whole("n", "3"), "n='3'"),
    "too few": (lambda: a.whole("capture(batch_size)", 0, 1), r"capture\(batch_size=0\): at least 1"),
    "too many": (lambda: a.whole("n", 5, 1, 4), "n=5: 1 to 4"),
    "a seed of 20 digits": (lambda: a.seed("seed", 10**20), "0 to 9223372036854775807"),
    "NaN": (lambda: a.number("x", float("nan")), "x=nan is not a finite number"),
    "infinity": (lambda: a.number("x", -np.inf), "finite"),
    "a bool for a number": (lambda: a.number("x", True), "finite number"),
    "a complex number": (lambda: a.number("x", 1j), "finite number"),
    "a number beyond floats": (lambda: a.number("x", 10**400), "finite number"),
    "not above": (lambda: a.number("x", 0, above=0), "x=0: above 0"),
    "a whole share": (lambda: a.share("held_out", 1), "held_out=1: a number that lies between 0 and 1"),
    "a word for a flag": (lambda: a.flag("do_sample", "yes"), "do_sample='yes': True or False is due"),
    "1 for a flag": (lambda: a.flag("do_sample", 1), "True or False"),
    "a list for a choice": (lambda: a.choice("rule", ["bh"], ("bh", "by")), "unknown rule"),
    "a text for a list": (lambda: a.wholes("layers", "12"), "layers='12': a list of whole numbers"),
    "floats in a list": (lambda: a.wholes("layers", [1.9]), "layers=1.9"),
    "one twice": (lambda: a.wholes("layers", [1, np.int64(1)]), "1 occurs twice"),
    "none": (lambda: a.wholes("layers", []), "is empty"),
    "a slice": (lambda: a.wholes("layers", slice(1, 3)), "a slice"),
    "a mapping": (lambda: a.wholes("layers", {1: 2}), "list of whole numbers"),
    "a bool in a list": (lambda: a.wholes("layers", [True, 2]), "layers=True"),
    "a number twice": (lambda: a.numbers("doses", [1, 1.0]), "occurs twice"),
    "a text for names": (lambda: a.names("emotions", "anger"), r"e.g. \['anger'\]"),
    "a name twice": (lambda: a.names("emotions", ["x", "x"]), "'x' occurs twice"),
    "an unknown name": (lambda: a.names("emotions", ["angre"], ("anger",)), "Did you mean 'anger'"),
    "a blank text": (lambda: a.text("text", "  "), "not blank"),
    "half a surrogate pair": (lambda: a.text("text", "x\udc80"), "character 1 is half of a surrogate pair"),
    "a complex vector": (lambda: a.real("vector", np.ones(2) + 1j), "complex128; real numbers"),
    "words for a vector": (lambda: a.real("vector", ["a"]), "real numbers"),
    "an infinite vector": (lambda: a.real("vector", [1, np.inf]), "NaN or infinite"),
    "a ragged vector": (lambda: a.real("vector", [[1], [1, 2]]), "no array of numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused(case):
    run, words = REFUSED[case]
    with pytest.raises(EmotraceError, match=words):
        run()


def test_whole_numbers_of_other_libraries_are_whole_numbers():
    for three in (3, np.int8(3), np.array(3), torch.tensor(3)):
        assert a.whole("n", three) == 3
        assert a.wholes("layers", three) == (3,)
    assert (
        a.wholes("layers", np.arange(3))
        == a.wholes("layers", range(3))
        == a.wholes("layers", iter([0, 1, 2]))
        == (0, 1, 2)
    )
    assert a.numbers("doses", (np.float32(0.5), 1)) == (0.5, 1.0)
    assert a.names("emotions", np.array(["joy", "fear"])) == ("joy", "fear")
    assert a.flag("do_sample", np.bool_(True)) is True
    assert a.wholes("layers", [], empty=True) == ()
