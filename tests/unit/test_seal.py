"""What is sealed can be opened by its owner's installation only, unchanged only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.seal import NotSealedHere, seal, unseal
from gateway.auth.secret import Secrets

KEYS, OTHERS = Secrets(b"a" * 32), Secrets(b"b" * 32)


@given(st.binary(max_size=200), st.text(min_size=1, max_size=20))
def test_what_is_sealed_for_somebody_is_opened_for_them_and_for_nobody_else(content, owner):
    sealed = seal(KEYS, owner, content)
    assert unseal(KEYS, owner, sealed) == content
    for keys, somebody in ((KEYS, owner + "x"), (OTHERS, owner)):
        with pytest.raises(NotSealedHere):
            unseal(keys, somebody, sealed)


def test_nothing_of_the_content_can_be_read_and_the_same_is_never_sealed_alike():
    one, two = seal(KEYS, "ada", b"words " * 20), seal(KEYS, "ada", b"words " * 20)
    assert one != two and len(set(one.split("="))) <= 2 and "words" not in one


@given(st.data())
def test_a_single_changed_character_is_noticed(data):
    sealed = seal(KEYS, "ada", b"some content of three bytes by three")
    at = data.draw(st.integers(0, len(sealed) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda letter: letter != sealed[at]))
    with pytest.raises(NotSealedHere):
        unseal(KEYS, "ada", sealed[:at] + other + sealed[at + 1 :])


@given(st.text(max_size=60))
def test_no_other_text_is_taken_for_one(text):
    with pytest.raises(NotSealedHere):
        unseal(KEYS, "ada", text)
