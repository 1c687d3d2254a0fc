"""Content comes back as it was, and data written by this release are read by every later one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.conversations.packing import pack, unpack


@given(st.binary(max_size=2000))
def test_any_content_comes_back(content: bytes) -> None:
    assert unpack(pack(content)) == content


def test_a_short_message_takes_less_than_its_json() -> None:
    body = b'{"type":"message","role":"user","content":[{"type":"input_text","text":"Hello, who are you?"}]}'
    assert len(pack(body)) < 35


def test_data_written_with_the_first_dictionary_are_read_for_ever() -> None:
    written = bytes.fromhex("01a396394ef97959f9a5454a40a70100")
    assert unpack(written) == b'{"type":"message","role":"user","content":[{"type":"input_text","text":"Bonjour"}]}'


def test_a_way_of_a_later_release_is_refused() -> None:
    with pytest.raises(ValueError, match="does not know"):
        unpack(b"\x07abc")
