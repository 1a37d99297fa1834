import numpy as np
import pytest

from emotrace import rsa
from emotrace.labels import EmotraceError

PLAIN = "emotion,valence,arousal\njoy,8.5,6\nfear,2,7.5\ngrief,1.5,3\ncalm,7,1\n"
RATERS = "who,emotion,valence\na,joy,8\na,fear,2\na,grief,1\nb,joy,9\nb,fear,\nb,grief,2\n"
PAIRS = (
    "first,second,dissimilarity,subject\njoy,fear,8,a\ngrief,joy,9,a\nfear,grief,3,a\n"
    "joy,fear,7,b\njoy,grief,8,b\nfear,grief,4,b\n"
)


@pytest.fixture
def csv(tmp_path):
    def write(text):
        path = tmp_path / "ratings.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_ratings(csv):
    got = rsa.read_ratings(csv("\ufeff" + PLAIN))
    assert got.dims == ("emotion", "attribute")
    assert got.sel(emotion="fear", attribute="arousal") == 7.5
    assert rsa.read_ratings(csv(PLAIN), ["arousal"])["attribute"].values.tolist() == ["arousal"]
    other = rsa.read_ratings(csv(PLAIN.replace("emotion", "concept")), concept="concept")
    assert rsa.attribute_rdms(other, concept="concept").sel(attribute="valence").values[0] == 6.5


def test_raters_are_averaged_and_counted(csv):
    got = rsa.read_ratings(csv(RATERS), rater="who")
    assert got.values[:, 0].tolist() == [8.5, 2, 1.5]
    assert got["n_raters"].values[:, 0].tolist() == [2, 1, 2]
    with pytest.raises(EmotraceError, match="nobody rated 'fear' for 'valence'"):
        rsa.read_ratings(csv(RATERS.replace("fear,2", "fear,")), rater="who")


def test_dissimilarities(csv):
    got = rsa.read_dissimilarities(csv(PAIRS), subject="subject")
    assert rsa.concepts(got) == ["joy", "fear", "grief"]
    assert got.values.tolist() == [[8, 9, 3], [7, 8, 4]]
    gap = PAIRS.replace("joy,grief,8,b\n", "")
    with pytest.raises(EmotraceError, match="'joy', 'grief' is missing for 'b'"):
        rsa.read_dissimilarities(csv(gap), subject="subject")
    filled = rsa.read_dissimilarities(csv(gap), subject="subject", fill=True)
    assert filled.values.tolist() == [[8, 9, 3], [7, 9, 4]]
    assert filled.attrs["filled"] == 1
    alone = "".join(line for line in PAIRS.splitlines(keepends=True) if not line.endswith("b\n"))
    assert rsa.read_dissimilarities(csv(alone)).values.tolist() == [8, 9, 3]


@pytest.mark.parametrize(
    ("text", "more", "word"),
    [
        (PLAIN, {"attributes": ["valance"]}, "unknown column 'valance'.*Did you mean 'valence'"),
        (PLAIN, {"concept": "concept"}, "unknown column 'concept'"),
        (PLAIN.replace("7.5", ""), {}, "line 3, column 'arousal' is empty"),
        (PLAIN.replace("7.5", "high"), {}, "line 3, column 'arousal' is 'high', no number"),
        (PLAIN.replace("7.5", "nan"), {}, "is 'nan', no number"),
        (PLAIN.replace("calm", "joy"), {}, r"joy occurs twice, the second time in line 5.*rater"),
        (PLAIN.replace("calm", ""), {}, "line 5 has no 'emotion'"),
        (PLAIN.replace("arousal", "valence"), {}, "column 'valence' occurs twice"),
        (PLAIN.replace("fear,2", "fear,2,2"), {}, "line 3 has 4 cells"),
        ("emotion,valence\njoy,1\nfear,2\n", {}, "3 are the least"),
        ("emotion\njoy\nfear\ngrief\n", {}, "no column of ratings"),
        ("emotion,valence\n", {}, "no rows"),
        ("", {}, "no rows"),
    ],
)
def test_bad_ratings(csv, text, more, word):
    with pytest.raises(EmotraceError, match=word):
        rsa.read_ratings(csv(text), **more)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (PAIRS.replace("joy,fear,7", "joy,joy,7"), "line 5 compares 'joy' with itself"),
        (PAIRS.replace("joy,fear,7", "grief,joy,7"), "'joy', 'grief' occurs twice for 'b'"),
        (PAIRS.replace("joy,fear,7", "joy,fear,x"), "line 5, column 'dissimilarity' is 'x'"),
        (PAIRS.replace("first", "one"), "unknown column 'first'"),
    ],
)
def test_bad_dissimilarities(csv, text, word):
    with pytest.raises(EmotraceError, match=word):
        rsa.read_dissimilarities(csv(text), subject="subject")


def test_missing_files(tmp_path):
    with pytest.raises(EmotraceError, match="no such file"):
        rsa.read_ratings(tmp_path / "none.csv")
    binary = tmp_path / "a.csv"
    binary.write_bytes(np.arange(99, dtype=np.float64).tobytes())
    with pytest.raises(EmotraceError, match=r"no CSV table|cells|no rows|column"):
        rsa.read_ratings(binary)
