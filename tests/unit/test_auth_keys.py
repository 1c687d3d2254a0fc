"""The shape of keys and what derives from the installation's secret."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.keys import PREFIX, is_well_formed, new_key
from gateway.auth.secret import SecretError, Secrets

SECRETS = Secrets(b"x" * 32)


def test_a_new_key_has_the_published_shape_and_is_never_made_twice() -> None:
    keys = {new_key() for _ in range(200)}
    assert len(keys) == 200
    assert all(is_well_formed(key) and key.startswith(PREFIX) and len(key) == 44 for key in keys)


@given(st.integers(0, 43), st.sampled_from("0aZ_ \n\0é"))
def test_a_key_with_one_character_changed_is_no_key(at: int, other: str) -> None:
    key = new_key()
    if key[at] != other:
        assert not is_well_formed(key[:at] + other + key[at + 1 :])


@pytest.mark.parametrize(
    "text",
    [
        *("", "dm_live_", "' OR 1=1 --", '"', "\0", "a" * 1_000_000),
        *(new_key() + "\r\nx: y", new_key() + "\n", new_key() * 2, new_key().upper()),
        *("dm_live_" + digit * 36 for digit in "٣é0"),
    ],
    ids=lambda text: f"{len(text)}-{text[:8]}",  # the keys are others in each process of the tests
)
def test_no_hostile_text_passes_for_a_key(text: str) -> None:
    assert not is_well_formed(text)


@given(st.text())
def test_no_text_passes_for_a_key_by_chance(text: str) -> None:
    assert not is_well_formed(text)
    assert not is_well_formed(PREFIX + text)


def test_two_keys_with_equal_first_sixty_four_characters_have_different_digests() -> None:
    assert SECRETS.digest_of_key("k" * 64 + "a") != SECRETS.digest_of_key("k" * 64 + "b")
    assert SECRETS.digest_of_token("k" * 64 + "a") != SECRETS.digest_of_token("k" * 64 + "b")


def test_a_value_made_for_one_purpose_is_of_no_use_for_another() -> None:
    assert SECRETS.digest_of_key("x") != SECRETS.digest_of_token("x")
    assert SECRETS.derive("a") != SECRETS.derive("b")
    assert Secrets(b"y" * 32).digest_of_key("x") != SECRETS.digest_of_key("x")


def test_derived_keys_are_those_of_hkdf() -> None:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    assert SECRETS.derive("label") == HKDF(SHA256(), 32, b"deskmate", b"label").derive(b"x" * 32)


def test_a_cache_salt_is_stable_private_and_forty_three_characters() -> None:
    salt = SECRETS.cache_salt("user_1")
    assert salt == Secrets(b"x" * 32).cache_salt("user_1")
    assert len(salt) == 43 and salt.replace("-", "a").replace("_", "a").isalnum()
    assert salt != SECRETS.cache_salt("user_2")


def test_a_short_or_missing_secret_is_refused_without_being_shown(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    with pytest.raises(SecretError, match="No such file"):
        Secrets.from_file(file)
    file.write_bytes(b"canary-canary\n")
    with pytest.raises(SecretError, match="has 13 bytes, at least 32") as refused:
        Secrets.from_file(file)
    assert "canary" not in str(refused.value)
