"""What a connection remembers of responses that are not stored: the newest, and never more than it may hold."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.api.response_memory import Memory

SAID = [{"type": "message", "role": "user", "content": "x" * 100}]


def test_the_oldest_go_when_there_are_too_many() -> None:
    memory = Memory(most_responses=2)
    for name in ("a", "b", "c"):
        memory.keep(name, SAID)
    assert [memory.get(name) for name in ("a", "b", "c")] == [None, SAID, SAID]
    memory.forget("c")
    memory.forget("nobody")
    assert memory.get("c") is None and memory.get(None) is None


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 40)), max_size=30))
def test_what_is_kept_is_the_newest_that_fits(kept: list[tuple[str, int]]) -> None:
    memory, contexts = Memory(most_responses=4, most_bytes=1000), dict[str, list[dict[str, str]]]()
    for name, items in kept:
        contexts.pop(name, None)
        contexts[name] = [{"content": "x" * 13}] * items  # 28 bytes of JSON each, its comma included
        memory.keep(name, contexts[name])
    there = [name for name in contexts if memory.get(name) is not None]
    assert len(there) <= 4 and sum(1 + 28 * len(contexts[name]) for name in there) <= 1000 + len(there)
    assert there == list(contexts)[len(contexts) - len(there) :]
    assert all(memory.get(name) == contexts[name] for name in there)
