"""Which waits are told: another place, and one that is not what was said before."""

import pytest

from gateway.admission import Waiting
from gateway.waited import comment_of, is_news


@pytest.mark.parametrize(
    ("told", "now", "seconds", "news"),
    [
        (Waiting(3, 10.0), Waiting(2, 9.0), 1.0, True),
        (Waiting(3, 10.0), Waiting(4, 10.0), 1.0, True),
        (Waiting(3, 10.0), Waiting(3, 9.0), 1.0, False),
        (Waiting(3, 10.0), Waiting(3, 10.0), 1.0, False),
        (Waiting(3, 10.0), Waiting(3, 10.0), 4.0, True),  # it does not become shorter
        (Waiting(3, 10.0), Waiting(3, 14.0), 1.0, True),
        (Waiting(3, 100.0), Waiting(3, 110.0), 1.0, False),  # a long wait is not known so well
        (Waiting(3, 100.0), Waiting(3, 140.0), 1.0, True),
        (Waiting(3, None), Waiting(3, 10.0), 1.0, True),
        (Waiting(3, 10.0), Waiting(3, None), 1.0, False),
        (Waiting(3, None), Waiting(3, None), 60.0, False),
    ],
)
def test_a_wait_is_told_anew_when_the_place_or_the_estimate_is_another(told, now, seconds, news):
    assert is_news(now, told, seconds) is news


@pytest.mark.parametrize(
    ("waiting", "comment"),
    [
        (Waiting(3, 8.04), b": queued, place 3, about 8.0 s\n\n"),
        (Waiting(1, None), b": queued, place 1\n\n"),
        (Waiting(0, 0.0), b": seated\n\n"),
    ],
)
def test_a_wait_is_a_comment_in_a_stream_of_events(waiting, comment):
    assert comment_of(waiting) == comment
