"""Tables of docs/administrator.md as the code makes them. `python -m tests.docs.tables` puts them there."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from deploy import cli
from deploy.errors import EXIT_CODES
from gateway.__main__ import _parser as gateway_parser
from tests.docs import blocks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "administrator.md"
HELP = "-h"


def exit_codes() -> str:
    return table(("code", "meaning"), ((f"`{code}`", meaning) for code, meaning in EXIT_CODES))


def command_line() -> str:
    """Every word of `./deskmate` with its options; `user` and `key` belong to the gateway."""
    words = dict(commands_of(cli.parser(), "./deskmate"))
    people = dict(commands_of(gateway_parser(), "./deskmate"))
    whole = {**words, **{word: parser for word, parser in people.items() if word.split()[1] in ("user", "key")}}
    shown = [word for word in (*words, *people) if word in whole and not holds_words(whole[word])]
    return table(
        ("command", "what it does"),
        (row for word in dict.fromkeys(shown) for row in rows_of(word, whole[word])),
    )


def commands_of(parser: argparse.ArgumentParser, path: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command under this one, itself left out; its help is kept as its description."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            about = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for word, command in action.choices.items():
                command.description = about.get(word, "")
                yield f"{path} {word}", command
                yield from commands_of(command, f"{path} {word}")


def holds_words(parser: argparse.ArgumentParser) -> bool:
    return any(isinstance(action, argparse._SubParsersAction) for action in parser._actions)


def rows_of(path: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    shown = [a for a in parser._actions if HELP not in a.option_strings and a.help is not argparse.SUPPRESS]
    places = " ".join(place_of(action) for action in shown if not action.option_strings)
    yield f"`{path} {places}".rstrip() + "`", parser.description or ""
    for action in shown:
        if action.option_strings:
            yield f"· `{' '.join([', '.join(action.option_strings), value_of(action)]).rstrip()}`", said(action)
        elif action.help:
            yield f"· `{place_of(action)}`", said(action)


def place_of(action: argparse.Action) -> str:
    name = str(action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper()))
    return f"[{name}]" if action.nargs == "?" else name


def value_of(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    name = str(action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest))
    return f"{name} …" if action.nargs == argparse.REMAINDER else name


def said(action: argparse.Action) -> str:
    text = (action.help or "") % {"default": action.default}
    return f"{text}; needed" if action.option_strings and action.required else text


def table(titles: tuple[str, str], rows: Iterator[tuple[str, str]]) -> str:
    lines = [titles, ("---", "---"), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


TABLES = {"exit codes": exit_codes, "command line": command_line}


def main() -> None:
    for name, made in TABLES.items():
        blocks.put(PAGE, name, made())


if __name__ == "__main__":
    main()
