"""Recipes and answers: what is refused, and with which choices."""

import pytest

from emotrace.labels import EmotraceError
from emotrace.presets import preset
from emotrace.prompt_tuning import Recipe, answer_ids
from emotrace.testing.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def test_the_published_recipe_says_what_the_preset_says():
    recipe, published = Recipe.of("model_emotion"), preset("model_emotion")
    assert (recipe.length, recipe.init, recipe.init_std) == (published["prompt_length"], "normal", 0.02)
    assert recipe.words == (33407, 22173)
    assert (recipe.mean, recipe.eval_batch, recipe.negatives) == ("batches", 256, "contaminated")
    assert not recipe.correct_bias
    assert Recipe.of("model_emotion", epochs=2).epochs == 2
    assert Recipe(**Recipe().record) == Recipe()


WRONG = {
    "length": ({"length": 0}, r"length=0\): an integer from 1"),
    "init": ({"init": "zeros"}, "unknown init 'zeros'.*vocabulary, mask, normal"),
    "template": ({"template": "is it joy?"}, "no {text}"),
    "words": ({"words": ("yes",)}, "two answers"),
    "rate": ({"learning_rate": 0}, "positive rate"),
    "patience": ({"patience": 0}, "at least 1 epoch"),
    "mean": ({"mean": "sum"}, "examples, batches"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_is_refused(case):
    options, message = WRONG[case]
    with pytest.raises(EmotraceError, match=message):
        Recipe(**options)


def test_unknown_names_are_refused_with_choices():
    with pytest.raises(EmotraceError, match=r"unknown setting 'lenght'.*Did you mean 'length'"):
        Recipe.of(lenght=3)
    with pytest.raises(EmotraceError, match="Choices: model_emotion"):
        Recipe.of("model")


def test_answers_are_single_tokens_of_the_tokenizer():
    assert answer_ids(("-", "+"), TOKENIZER, 160) == tuple(TOKENIZER.convert_tokens_to_ids(["-", "+"]))
    assert answer_ids((12, 99), None, 160) == (12, 99)


class Sentences:
    """A tokenizer to which words are tokens only behind a blank, as in the middle of a sentence."""

    unk_token_id = 0

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": {" no": [7], " yes": [8], "odd": [0]}.get(text, [1, 2])}

    def convert_ids_to_tokens(self, ids):
        return [str(i) for i in ids]


def test_a_word_may_be_a_token_behind_a_blank_only():
    assert answer_ids(("no", "yes"), Sentences()) == (7, 8)


@pytest.mark.parametrize(
    ("words", "tokenizer", "message"),
    [
        (("-", "plus"), TOKENIZER, r"'plus' is no single token but \['p', 'l', 'u', 's'\]"),
        (("negative", "positive"), Sentences(), "Pairs that are: no/yes"),
        (("no", "odd"), Sentences(), "'odd' is no single token"),
        (("+", "+"), TOKENIZER, "two different answers"),
        ((3, 160), TOKENIZER, "no token id 160; ids are below 160"),
        (("no", "yes"), None, "no tokenizer"),
    ],
)
def test_words_that_will_not_do_are_refused_with_pairs_that_would(words, tokenizer, message):
    with pytest.raises(EmotraceError, match=message):
        answer_ids(words, tokenizer, 160)
