"""The border between prompt and completion."""

from __future__ import annotations

import logging

import pytest

from libortho.errors import ConfigError
from libortho.privacy.encode import Encoded, encode, pad
from libortho.privacy.private_set import Example


def test_ids_are_those_of_the_joint_text(tiny_tokenizer) -> None:
    (encoded,) = encode(tiny_tokenizer, [Example("a", "The code is", " 12 or so")])
    assert list(encoded.input_ids) == tiny_tokenizer("The code is 12 or so")["input_ids"]
    assert tiny_tokenizer.decode(list(encoded.completion_ids)) == " 12 or so"
    assert encoded.input_ids[0] == tiny_tokenizer.bos_token_id


def test_a_straddling_token_counts_as_secret(
    tiny_tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(tiny_tokenizer(" the", add_special_tokens=False)["input_ids"]) == 1
    with caplog.at_level(logging.WARNING):
        (encoded,) = encode(tiny_tokenizer, [Example("a", "is ", "the")])
    assert tiny_tokenizer.decode(list(encoded.completion_ids)) == " the"
    assert "tokenise differently" in caplog.text


def test_text_rows_predict_everything_after_the_leading_token(tiny_tokenizer) -> None:
    (encoded,) = encode(tiny_tokenizer, [Example("a", "", "some text")])
    assert encoded.prompt_length == 1
    assert tiny_tokenizer.decode(list(encoded.completion_ids)) == "some text"


def test_characters_of_several_tokens_are_not_cut(tiny_tokenizer) -> None:
    (encoded,) = encode(tiny_tokenizer, [Example("a", "日本", "語の")])
    assert tiny_tokenizer.decode(list(encoded.completion_ids)) == "語の"


def test_all_that_is_too_long_is_named(tiny_tokenizer) -> None:
    rows = [Example(f"row{i}", "p", " 1" * 5 * i) for i in (1, 9, 1, 12)]
    with pytest.raises(ConfigError) as caught:
        encode(tiny_tokenizer, rows, max_length=40)
    assert "row9" in str(caught.value)
    assert "row12" in str(caught.value)
    assert "row1:" not in str(caught.value)


def test_padding_is_on_the_right() -> None:
    batch = pad([Encoded((5, 6, 7), 2), Encoded((8,), 1)])
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.prompt_lengths.tolist() == [2, 1]
