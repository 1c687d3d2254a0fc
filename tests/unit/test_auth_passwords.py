"""Which passwords are good enough, and what their hashes are made of."""

from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher

from gateway.auth.passwords import LONGEST, Passwords
from gateway.errors import BadRequest


@pytest.fixture(scope="module")
def passwords() -> Iterator[Passwords]:
    passwords = Passwords()
    yield passwords
    passwords.close()


@pytest.mark.parametrize(
    "password",
    [
        "password", "Password1!", "P@ssw0rd", "P4$$w0rd2024", "passwort123", "12345678", "87654321", "abcdefgh",
        "qwertyuiop", "QWERTZUIOP", "asdfghjkl", "1qaz2wsx", "aaaaaaaa", "abababab", "00000000", "11112222",
        "iloveyou", "Sunshine99", "Summer2024", "Sommer2024!", "December2023", "welcome1!", "Willkommen1", "admin123",
        "Admin@2024", "letmein!!", "changeme1", "monkey123", "dragon2000", "football1", "starwars77", "qwerty123456",
        "zxcvbnm123", "deskmate", "Deskmate1", "passwordpassword", "testtest",
        "annetta1", "ANNETTA!", "correcthorsebatterystaple", "woaini1314", "p455w0rd", "!!!!!!!!",
        "12345678901", "1234567890!", "short", "", "x" * 129,
    ],
)  # fmt: skip
def test_a_password_that_is_guessed_among_the_first_is_refused(passwords: Passwords, password: str) -> None:
    with pytest.raises(BadRequest) as refused:
        passwords.check(password, "Annetta")
    assert (refused.value.param, refused.value.code) == ("new", "weak_password")


@pytest.mark.parametrize(
    "password",
    [
        "four unrelated words here",
        "zebra-kitchen-42",
        "密码是八个字的长句",
        "x7#Kq!v2",
        "  spaces count  ",
        "🔑🐢🌙🎻🍋🚲🧦🪁",
    ],
)
def test_any_characters_make_a_good_password(passwords: Passwords, password: str) -> None:
    passwords.check(password, "Annetta")


def test_a_password_of_the_longest_length_is_allowed(passwords: Passwords) -> None:
    passwords.check(("abcdefg " * 16)[:LONGEST], "Annetta")


async def test_a_hash_is_argon2id_of_the_stated_cost_and_salted(passwords: Passwords) -> None:
    one, two = await passwords.hash("four unrelated words"), await passwords.hash("four unrelated words")
    assert one != two and one.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await passwords.verify("four unrelated words", one)
    assert not await passwords.verify("four unrelated word", one)
    assert not await passwords.verify("four unrelated words", None)
    assert not await passwords.verify("four unrelated words", "damaged")
    assert not await passwords.verify("the password of nobody", None)


async def test_the_same_characters_from_another_keyboard_are_the_same_password(passwords: Passwords) -> None:
    assert await passwords.verify("Gru\u0308ße aus Mu\u0308nchen", await passwords.hash("Gr\u00fcße aus M\u00fcnchen"))


async def test_a_hash_of_another_cost_is_outdated_but_still_good(passwords: Passwords) -> None:
    old = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash("four unrelated words")
    assert passwords.is_outdated(old) and await passwords.verify("four unrelated words", old)
    assert not passwords.is_outdated(await passwords.hash("four unrelated words"))
