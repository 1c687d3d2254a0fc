"""vLLM's own parsers of thoughts, cut at every token: what they read of the rest must go on where the beginning ended.

Run as a script, so that torch stays out of its caller's process; prints what is not so, as JSON. Needs no model.
"""

import json
import sys
from typing import Any

THINK, SEED = ("<think>", "</think>"), ("<seed:think>", "</seed:think>")
ROLES = ("<|im_start|>", "<|im_end|>", "<｜Assistant｜>", "<seed:bos>", "<seed:eos>", "<|user|>", "<|assistant|>")
CALLS = ("<tool_call>", "</tool_call>", "<seed:tool_call>", "</seed:tool_call>")
OPENED = "so\n</think>\n\nA <b>."
# The parser, the end of a prompt, an answer to it: the marks opened by the template or by the model.
CASES = (
    ("qwen3", "<|im_start|>assistant\n", f"<think>\n{OPENED}"),
    ("qwen3", "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<think>\n", OPENED),
    ("deepseek_r1", "<｜Assistant｜><think>\n", OPENED),
    ("deepseek_r1", "<｜Assistant｜>", f"<think>\n{OPENED}"),
    ("glm45", "<|user|>x<|assistant|>", f"<think>\n{OPENED}"),
    ("seed_oss", "<seed:bos>assistant\n", "<seed:think>so</seed:think>\nA <b>."),
)


def bytes_tokenizer() -> Any:
    """A token for each byte, and the marks."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(ROLES))
    made.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in (*THINK, *SEED, *CALLS)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")


class Reader:
    def __init__(self, parser: str, tokenizer: Any) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.parser.parser_manager import ParserManager

        self.tokenizer = tokenizer
        self.kind: Any = ParserManager.get_parser(reasoning_parser_name=parser, tokenizer=tokenizer)
        self.request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "x"}])

    def read(self, prompt: list[int], answer: list[int]) -> tuple[str, str]:
        """The thoughts and the text of a stream of these tokens."""
        parser = self.kind(self.tokenizer, None, chat_template_kwargs={})
        thought = text = ""
        for at, token in enumerate(answer, 1):
            end = at == len(answer)
            said = parser.parse_delta(self.tokenizer.decode([token]), [token], self.request, prompt, finished=end)
            thought += (said and said.reasoning) or ""
            text += (said and said.content) or ""
        return thought, text


def torn(reader: Reader, prompt: str, answer: str) -> list[Any]:
    """Where the answer may not be cut; the blanks at a cut are the gateway's affair."""
    first, tokens = (reader.tokenizer.encode(part, add_special_tokens=False) for part in (prompt, answer))
    whole = _bare(*reader.read(first, tokens))
    wrong: list[Any] = [] if all(whole) else [["nothing is told apart", whole]]
    for cut in range(1, len(tokens)):
        said, more = reader.read(first, tokens[:cut]), reader.read([*first, *tokens[:cut]], tokens[cut:])
        if (both := _bare(said[0] + more[0], said[1] + more[1])) != whole:
            wrong.append([reader.tokenizer.decode(tokens[:cut]), both])
    return wrong


def _bare(*parts: str) -> list[str]:
    return ["".join(part.split()) for part in parts]


def main() -> None:
    tokenizer = bytes_tokenizer()
    found = {f"{name}: {prompt}": torn(Reader(name, tokenizer), prompt, answer) for name, prompt, answer in CASES}
    json.dump({case: wrong for case, wrong in found.items() if wrong}, sys.stdout)


if __name__ == "__main__":
    main()
