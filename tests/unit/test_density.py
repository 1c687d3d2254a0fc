"""How long a prompt is for the line before the engine has counted it: by its length, and by what lately was found."""

from gateway.relay import Density


def test_at_first_a_prompt_is_as_long_as_it_looks():
    assert Density().tokens(120) == 120


def test_what_the_engine_counts_is_learned_within_some_tens_of_prompts():
    density = Density()
    for _ in range(40):
        density.learn(50, 150)
    assert 130 <= density.tokens(50) <= 150


def test_a_greeting_with_its_template_says_little_of_a_long_prompt():
    density = Density()
    for _ in range(40):
        density.learn(1000, 1000)
        density.learn(1, 30)
    assert 1000 <= density.tokens(1000) < 1050
    assert density.tokens(0) == 1
