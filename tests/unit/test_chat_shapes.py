"""Shapes of chat templates, after the published families: every token's label made by hand.

A shape is written as the text of each turn with a label before each stretch of it: the text is what
its template says, the labels are what its tokens must be. `{c}` stands for what is said.
Conversations are put together of turns, with and without a system text, reasoning, tools and a
second exchange; the tags are special tokens, added tokens that are not special, or plain text; the
template marks what is generated (between `⟪` and `⟫`) or does not.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from ablate.config.schema import Dataset, Splits
from ablate.data.formats import reader
from ablate.data.sources import Record
from ablate.data.spans import token_roles
from ablate.data.templates import render
from ablate.data.tokenizer import Tokenizer
from tests.unit.conftest import byte_level, save

LABELS = {  # by the names of roles and of details within them
    "special": "S",
    "boilerplate": "B",
    "system": "Y",
    "instruction": "I",
    "completion": "C",
    "stop": "E",
    "generation_prompt": "G",
    "thinking": "T",
    "tool_call": "K",
    "tool_result": "R",
    "tools": "D",
}
ANSWER = "CETK"  # labels of what an answer consists of


@dataclass(frozen=True)
class Shape:
    """A chat template, as the labelled text of each of its turns."""

    user: str
    answer: str
    prompt: str = ""  # what asks for an answer; empty: the template knows no such thing
    system: str = ""  # its own turn, or with `fold` what stands before a request
    fold: str = ""  # the request that the system text stands in: first or last
    start: str = ""
    default: str = ""  # a system turn that the template writes where there is none
    end: str = ""  # closes the conversation
    last: str = ""  # an answer that ends the conversation, where it differs
    thought: str = ""  # an answer with its reasoning {t}
    keep: bool = True  # reasoning of earlier answers
    call: str = ""  # of the tool {n} with the arguments {a}
    result: str = ""
    tools: str = ""  # the definitions {d}
    strip: bool = False  # white space at the ends of what is said
    bos: str | None = None
    more: tuple[str, ...] = ()  # tokens that a pattern does not find

    @property
    def texts(self) -> list[str]:
        """All labelled texts."""
        return [v for v in dataclasses.asdict(self).values() if isinstance(v, str)]

    def tokens(self) -> list[str]:
        """The tags that are tokens."""
        said = "".join(map(plain, self.texts))
        found = re.findall(
            r"<[|｜][^<>|｜]+[|｜]>|</?s>|<(?:start|end)_of_turn>|\[/?[A-Z_]+\]|<sop>", said
        )
        return list(dict.fromkeys([*found, *self.more, "</s>"]))


def chatml(**more: Any) -> Shape:
    """A shape of the ChatML family."""
    turn = {
        "user": "§S<|im_start|>user\n§I{c}§S<|im_end|>\n",
        "answer": "§G<|im_start|>assistant\n⟪§C{c}§E<|im_end|>⟫§S\n",
        "system": "§S<|im_start|>system\n§Y{c}§S<|im_end|>\n",
        "prompt": "<|im_start|>assistant\n",
    }
    return Shape(**{**turn, **more})


THOUGHT = "§G<|im_start|>assistant\n⟪§T<think>\n{t}\n</think>\n\n§C{c}§E<|im_end|>⟫§S\n"
CALL = (
    (
        '§G<|im_start|>assistant\n⟪§K<tool_call>\n{{"name": "{n}", "arguments": {a}}}\n</tool_call>'
        "§E<|im_end|>⟫§S\n"
    )
    .replace("{{", "{")
    .replace("}}", "}")
)
RESULT = "§S<|im_start|>user\n<tool_response>\n§R{c}§S\n</tool_response><|im_end|>\n"
LLAMA_3 = {
    "start": "§S<|begin_of_text|>",
    "system": "§S<|start_header_id|>system<|end_header_id|>\n\n§Y{c}§S<|eot_id|>",
    "user": "§S<|start_header_id|>user<|end_header_id|>\n\n§I{c}§S<|eot_id|>",
    "answer": "§G<|start_header_id|>assistant<|end_header_id|>\n\n⟪§C{c}§E<|eot_id|>⟫",
    "prompt": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "strip": True,
}
PHI = {
    "system": "§S<|system|>\n§Y{c}§S<|end|>\n",
    "user": "§S<|user|>\n§I{c}§S<|end|>\n",
    "answer": "§G<|assistant|>\n⟪§C{c}§E<|end|>⟫§S\n",
    "prompt": "<|assistant|>\n",
}
GRANITE = {
    "system": "§S<|start_of_role|>system<|end_of_role|>§Y{c}§S<|end_of_text|>\n",
    "user": "§S<|start_of_role|>user<|end_of_role|>§I{c}§S<|end_of_text|>\n",
    "answer": "§G<|start_of_role|>assistant<|end_of_role|>⟪§C{c}§E<|end_of_text|>⟫§S\n",
    "prompt": "<|start_of_role|>assistant<|end_of_role|>",
}
DEEPSEEK = {
    "start": "§S<｜begin▁of▁sentence｜>",
    "system": "§Y{c}",
    "user": "§S<｜User｜>§I{c}",
    "answer": "§G<｜Assistant｜>⟪§C{c}§E<｜end▁of▁sentence｜>⟫",
    "prompt": "<｜Assistant｜>",
}
GEMMA = {
    "start": "§S<bos>",
    "user": "§S<start_of_turn>user\n{f}§I{c}§S<end_of_turn>\n",
    "answer": "§G<start_of_turn>model\n⟪§C{c}§E<end_of_turn>⟫§S\n",
    "prompt": "<start_of_turn>model\n",
    "strip": True,
    "more": ("<bos>",),
}
SHAPES = {
    "chatml": chatml(),
    "chatml, marks around the newline": chatml(
        answer="§G<|im_start|>assistant\n⟪§C{c}§E<|im_end|>§S\n⟫"
    ),
    "chatml, no prompt": chatml(
        prompt="", answer="§S<|im_start|>assistant\n⟪§C{c}§E<|im_end|>⟫§S\n"
    ),
    "chatml, marks without the stop": chatml(
        answer="§G<|im_start|>assistant\n⟪§C{c}⟫§E<|im_end|>§S\n"
    ),
    "smollm 2": chatml(
        default="§S<|im_start|>system\n§BYou are a small and helpful model.§S<|im_end|>\n"
    ),
    "smollm 3, marks around the header": chatml(
        answer="⟪§G<|im_start|>assistant\n§C{c}§E<|im_end|>§S\n⟫",
        thought="⟪" + THOUGHT.replace("⟪", "").replace("⟫", "") + "⟫",
    ),
    "yi": chatml(strip=True),
    "internlm 2": chatml(start="§S<s>", bos="<s>"),
    "qwen 2.5": chatml(
        default="§S<|im_start|>system\n§BYou are Q, made by the cloud.§S<|im_end|>\n",
        call=CALL,
        result=RESULT,
        tools="§S<|im_start|>system\n§D# Tools\n\nYou may call these:\n{d}§S<|im_end|>\n",
    ),
    "qwen 3": chatml(
        thought=THOUGHT,
        keep=False,
        call=CALL,
        result=RESULT,
        tools="§S<|im_start|>system\n§D# Tools\n\nYou may call these:\n{d}§S<|im_end|>\n",
    ),
    "qwen 3, reasoning kept": chatml(thought=THOUGHT, call=CALL, result=RESULT),
    "a prompt that opens reasoning": chatml(
        prompt="<|im_start|>assistant\n<think>\n",
        answer="§G<|im_start|>assistant\n<think>\n⟪§T\n</think>\n\n§C{c}§E<|im_end|>⟫§S\n",
        thought="§G<|im_start|>assistant\n<think>\n⟪§T{t}\n</think>\n\n§C{c}§E<|im_end|>⟫§S\n",
        call=CALL.replace("⟪§K", "<think>\n⟪§T\n</think>\n\n§K"),
        result=RESULT,
    ),
    "a prompt with an empty reasoning": chatml(
        prompt="<|im_start|>assistant\n<think>\n\n</think>\n\n",
        answer="§G<|im_start|>assistant\n<think>\n\n</think>\n\n⟪§C{c}§E<|im_end|>⟫§S\n",
    ),
    "hermes": chatml(
        start="§S<|begin_of_text|>",
        call=CALL,
        result="§S<|im_start|>tool\n<tool_response>\n§R{c}§S\n</tool_response>\n<|im_end|>\n",
        tools="§S<|im_start|>system\n§DYou call functions within tags. {d}§S<|im_end|>\n",
    ),
    "lfm 2": chatml(
        start="§S<|startoftext|>",
        bos="<|startoftext|>",
        tools="§S<|im_start|>system\n§DList of tools:<|tool_list_start|>{d}<|tool_list_end|>"
        "§S<|im_end|>\n".replace("<|tool_list_start|>", "§S <|tool_list_start|>§D").replace(
            "<|tool_list_end|>", "§S<|tool_list_end|>"
        ),
        call="§G<|im_start|>assistant\n⟪§K<|tool_call_start|>[{n}({a})]<|tool_call_end|>"
        "§E<|im_end|>⟫§S\n",
        result="§S<|im_start|>tool\n<|tool_response_start|>§R{c}§S<|tool_response_end|><|im_end|>\n",
    ),
    "llama 2": Shape(
        user="§S<s>[INST] {f}§I{c}§S [/INST]",
        answer="⟪§S §C{c}§E </s>⟫",
        system="§S<<SYS>>\n§Y{c}§S\n<</SYS>>\n\n",
        fold="first",
        strip=True,
        bos="<s>",
    ),
    "llama 3, first": Shape(
        **{
            **LLAMA_3,
            "prompt": "",
            "answer": LLAMA_3["answer"].replace("§G", "§S"),
            "end": "§S<|start_header_id|>assistant<|end_header_id|>\n\n",
        }
    ),
    "llama 3": Shape(**LLAMA_3),
    "llama 3.1": Shape(
        **LLAMA_3,
        default="§S<|start_header_id|>system<|end_header_id|>\n\n§BCutting Knowledge Date: "
        "December 2023\nToday Date: 26 Jul 2024§S\n\n<|eot_id|>",
        call="§G<|start_header_id|>assistant<|end_header_id|>\n\n"
        '⟪§K{"name": "{n}", "parameters": {a}}§E<|eot_id|>⟫',
        result="§S<|start_header_id|>ipython<|end_header_id|>\n\n§R{c}§S<|eot_id|>",
        tools="§S<|start_header_id|>system<|end_header_id|>\n\n§DAnswer with a call of these. {d}"
        "§S<|eot_id|>",
    ),
    "llama 3.1, a stop of its own behind a call": Shape(
        **LLAMA_3,
        call="§G<|start_header_id|>assistant<|end_header_id|>\n\n"
        "⟪§K<|python_tag|>{n}.call({a})§E<|eom_id|>⟫",
        result="§S<|start_header_id|>ipython<|end_header_id|>\n\n§R{c}§S<|eot_id|>",
    ),
    "nemotron, llama": Shape(
        **{**LLAMA_3, "keep": False},
        thought="§G<|start_header_id|>assistant<|end_header_id|>\n\n"
        "⟪§T<think>\n{t}\n</think>\n\n§C{c}§E<|eot_id|>⟫",
    ),
    "nemotron, own tags": Shape(
        system="§S<extra_id_0>System\n§Y{c}§S\n",
        default="§S<extra_id_0>System\n\n",
        user="§S<extra_id_1>User\n§I{c}§S\n",
        answer="§G<extra_id_1>Assistant\n⟪§C{c}§E\n<extra_id_2>⟫§S\n",
        prompt="<extra_id_1>Assistant\n",
        more=("<extra_id_0>", "<extra_id_1>", "<extra_id_2>"),
    ),
    "mistral 1": Shape(
        start="§S<s>",
        user="§S[INST] {f}§I{c}§S [/INST]",
        answer="⟪§C{c}§E</s>⟫",
        system="§Y{c}§S\n\n",
        fold="first",
        bos="<s>",
    ),
    "mistral 3": Shape(
        start="§S<s>",
        user="§S[INST] {f}§I{c}§S[/INST]",
        answer="⟪§S §C{c}§E</s>⟫",
        system="§Y{c}§S\n\n",
        fold="last",
        call='⟪§K[TOOL_CALLS] [{"name": "{n}", "arguments": {a}}]§E</s>⟫',
        result='§S[TOOL_RESULTS] {"content": §R{c}§S}[/TOOL_RESULTS]',
        tools="§S[AVAILABLE_TOOLS] §D{d}§S[/AVAILABLE_TOOLS]",
        bos="<s>",
    ),
    "mistral 7": Shape(
        start="§S<s>",
        system="§S[SYSTEM_PROMPT]§Y{c}§S[/SYSTEM_PROMPT]",
        user="§S[INST]§I{c}§S[/INST]",
        answer="⟪§C{c}§E</s>⟫",
        thought="⟪§T[THINK]{t}[/THINK]§C{c}§E</s>⟫",
        call="⟪§K[TOOL_CALLS]{n}[ARGS]{a}§E</s>⟫",
        result="§S[TOOL_RESULTS]§R{c}§S[/TOOL_RESULTS]",
        tools="§S[AVAILABLE_TOOLS]§D{d}§S[/AVAILABLE_TOOLS]",
        bos="<s>",
    ),
    "gemma 2": Shape(**GEMMA, bos="<bos>"),
    "gemma 3": Shape(**GEMMA, system="§Y{c}§S\n\n", fold="first", bos="<bos>"),
    "gemma 4": Shape(
        start="§S<bos>",
        system="§S<|turn>system\n§Y{c}§S<turn|>\n",
        user="§S<|turn>user\n§I{c}§S<turn|>\n",
        answer="§G<|turn>model\n⟪§C{c}§E<turn|>⟫§S\n",
        thought="§G<|turn>model\n⟪§T<|channel>thought\n{t}\n<channel|>§C{c}§E<turn|>⟫§S\n",
        keep=False,
        prompt="<|turn>model\n",
        bos="<bos>",
        more=("<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>"),
    ),
    "phi 3": Shape(**PHI, end="§S<|endoftext|>"),
    "phi 4": Shape(
        system="§S<|im_start|>system<|im_sep|>§Y{c}§S<|im_end|>",
        user="§S<|im_start|>user<|im_sep|>§I{c}§S<|im_end|>",
        answer="§G<|im_start|>assistant<|im_sep|>⟪§C{c}§E<|im_end|>⟫",
        prompt="<|im_start|>assistant<|im_sep|>",
    ),
    "phi 4 mini": Shape(
        system="§S<|system|>§Y{c}§S<|end|>",
        user="§S<|user|>§I{c}§S<|end|>",
        answer="§G<|assistant|>⟪§C{c}§E<|end|>⟫",
        prompt="<|assistant|>",
        end="§S<|endoftext|>",
        call="§G<|assistant|>⟪§K<|tool_call|>{n} {a}<|/tool_call|>§E<|end|>⟫",
        result="§S<|tool_response|>§R{c}§S<|end|>",
    ),
    "command r": Shape(
        start="§S<BOS_TOKEN>",
        system="§S<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>§Y{c}§S<|END_OF_TURN_TOKEN|>",
        user="§S<|START_OF_TURN_TOKEN|><|USER_TOKEN|>§I{c}§S<|END_OF_TURN_TOKEN|>",
        answer="§G<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟪§C{c}§E<|END_OF_TURN_TOKEN|>⟫",
        prompt="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        more=("<BOS_TOKEN>",),
    ),
    "command r7b": Shape(
        start="§S<BOS_TOKEN>",
        default="§S<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>§B# System Preamble\nYou are in a mode."
        "§S<|END_OF_TURN_TOKEN|>",
        system="§S<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>§Y{c}§S<|END_OF_TURN_TOKEN|>",
        user="§S<|START_OF_TURN_TOKEN|><|USER_TOKEN|>§I{c}§S<|END_OF_TURN_TOKEN|>",
        answer="§G<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>"
        "⟪§C{c}§E<|END_RESPONSE|><|END_OF_TURN_TOKEN|>⟫",
        prompt="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",
        more=("<BOS_TOKEN>",),
    ),
    "command r, calls without a stop and orders at the end": Shape(
        start="§S<BOS_TOKEN>",
        system="§S<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>§Y{c}§S<|END_OF_TURN_TOKEN|>",
        user="§S<|START_OF_TURN_TOKEN|><|USER_TOKEN|>§I{c}§S<|END_OF_TURN_TOKEN|>",
        answer="§G<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟪§C{c}§E<|END_OF_TURN_TOKEN|>⟫",
        call="§G<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟪§KAction: {n} {a}⟫§S\n",
        result="§S<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><results>\n§R{c}"
        "§S</results><|END_OF_TURN_TOKEN|>",
        end="§S<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Write 'Action:' and a call."
        "<|END_OF_TURN_TOKEN|>",
        prompt="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        more=("<BOS_TOKEN>",),
    ),
    "command r7b, the next header always": Shape(
        start="§S<BOS_TOKEN>",
        default="§S<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>§B# Preamble\nYou think in a mode."
        "§S<|END_OF_TURN_TOKEN|>",
        system="§S<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>§Y{c}§S<|END_OF_TURN_TOKEN|>",
        user="§S<|START_OF_TURN_TOKEN|><|USER_TOKEN|>§I{c}§S<|END_OF_TURN_TOKEN|>",
        answer="§S<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
        "⟪§C<|START_RESPONSE|>{c}§E<|END_RESPONSE|><|END_OF_TURN_TOKEN|>⟫",
        call="§S<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟪§T<|START_THINKING|><|END_THINKING|>"
        '§K<|START_ACTION|>[\n    {"tool_name": "{n}", "parameters": {a}}\n]<|END_ACTION|>'
        "§E<|END_OF_TURN_TOKEN|>⟫",
        result="§S<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><|START_TOOL_RESULT|>§R{c}"
        "§S<|END_TOOL_RESULT|><|END_OF_TURN_TOKEN|>",
        end="§S<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        more=("<BOS_TOKEN>",),
    ),
    "chatml, a system turn and the next header always": chatml(
        prompt="",
        default="§S<|im_start|>system\n§BYou are kind to all.§S<|im_end|>\n",
        answer="§S<|im_start|>assistant\n⟪§C{c}§E<|im_end|>⟫§S\n",
        end="§S<|im_start|>assistant\n",
        call=CALL.replace("§G", "§S"),
        result=RESULT,
    ),
    "deepseek 2": Shape(
        start="§S<｜begin▁of▁sentence｜>",
        system="§Y{c}§S\n\n",
        user="§SUser: §I{c}§S\n\n",
        answer="§GAssistant:⟪§C {c}§E<｜end▁of▁sentence｜>⟫",
        prompt="Assistant:",
    ),
    "deepseek 3": Shape(
        **DEEPSEEK,
        call="§G<｜Assistant｜>⟪§K<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{n}\n{a}"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>§E<｜end▁of▁sentence｜>⟫",
        result="§S<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>§R{c}§S<｜tool▁output▁end｜>"
        "<｜tool▁outputs▁end｜>",
    ),
    "deepseek r1": Shape(
        **{
            **DEEPSEEK,
            "prompt": "<｜Assistant｜><think>\n",
            "thought": "§G<｜Assistant｜><think>\n⟪§T{t}\n</think>\n§C{c}§E<｜end▁of▁sentence｜>⟫",
            "keep": False,
        }
    ),
    "glm 4, stops with the next speaker": Shape(
        start="§S[gMASK]<sop>",
        system="§S<|system|>\n§Y{c}",
        user="§S<|user|>\n§I{c}",
        answer="§G<|assistant|>⟪§C\n{c}§E<|endoftext|>⟫",
        prompt="<|assistant|>",
        more=("[gMASK]",),
    ),
    "olmo 2": Shape(
        start="§S<|endoftext|>",
        system="§S<|system|>\n§Y{c}§S\n",
        user="§S<|user|>\n§I{c}§S\n",
        answer="§G<|assistant|>\n⟪§C{c}§E<|eot|>⟫§S\n",
        prompt="<|assistant|>\n",
        bos="<|endoftext|>",
    ),
    "olmo, a stop at the end alone": Shape(
        system="§S<|system|>\n§Y{c}§S\n",
        user="§S<|user|>\n§I{c}§S\n",
        answer="§G<|assistant|>\n⟪§C{c}§E<|eot|>⟫§S\n",
        last="§G<|assistant|>\n⟪§C{c}§E<|eot|>⟫",
        prompt="<|assistant|>\n",
    ),
    "granite 3": Shape(
        **GRANITE,
        default="§S<|start_of_role|>system<|end_of_role|>§BKnowledge Cutoff Date: April 2024.\n"
        "You are Granite, made by a firm.§S<|end_of_text|>\n",
        call="§G<|start_of_role|>assistant<|end_of_role|>⟪§K<|tool_call|>{n} {a}"
        "§E<|end_of_text|>⟫§S\n",
        result="§S<|start_of_role|>tool_response<|end_of_role|>§R{c}§S<|end_of_text|>\n",
        tools="§S<|start_of_role|>tools<|end_of_role|>§D{d}§S<|end_of_text|>\n",
    ),
    "zephyr": Shape(
        system="§S<|system|>\n§Y{c}§S</s>\n",
        user="§S<|user|>\n§I{c}§S</s>\n",
        answer="§G<|assistant|>\n⟪§C{c}§E</s>⟫§S\n",
        prompt="<|assistant|>\n",
    ),
    "tulu": Shape(
        system="§S<|system|>\n§Y{c}§S\n",
        user="§S<|user|>\n§I{c}§S\n",
        answer="§G<|assistant|>\n⟪§C{c}§E</s>⟫§S\n",
        prompt="<|assistant|>\n",
    ),
    "vicuna": Shape(
        start="§S<s>",
        default="§BA chat between a curious user and an assistant.§S ",
        system="§Y{c}§S ",
        user="§SUSER: §I{c}§S ",
        answer="§GASSISTANT:⟪§C {c}§E</s>⟫",
        prompt="ASSISTANT:",
        bos="<s>",
    ),
    "alpaca": Shape(
        default="§BBelow is an instruction that describes a task.§S\n\n",
        system="§Y{c}§S\n\n",
        user="§S### Instruction:\n§I{c}§S\n\n",
        answer="§G### Response:\n⟪§C{c}§E</s>⟫§S\n\n",
        prompt="### Response:\n",
    ),
    "falcon": Shape(
        system="§SSystem: §Y{c}§S\n",
        user="§SUser: §I{c}§S\n",
        answer="§GFalcon:⟪§C {c}§E\n</s>⟫§S\n",
        prompt="Falcon:",
    ),
    "falcon 3": Shape(
        system="§S<|system|>\n§Y{c}§S\n",
        user="§S<|user|>\n§I{c}§S\n",
        answer="§G<|assistant|>\n⟪§C{c}§E<|endoftext|>⟫§S\n",
        last="§G<|assistant|>\n⟪§C{c}§E<|endoftext|>⟫",
        prompt="<|assistant|>\n",
    ),
    "starchat": Shape(**PHI),
    "solar": Shape(
        start="§S<s>",
        system="§S### System:\n§Y{c}§S\n\n",
        user="§S### User:\n§I{c}§S\n\n",
        answer="§G### Assistant:\n⟪§C{c}§E</s>⟫§S\n\n",
        prompt="### Assistant:\n",
        bos="<s>",
    ),
    "openchat": Shape(
        start="§S<s>",
        user="§SGPT4 Correct User: §I{c}§S<|end_of_turn|>",
        answer="§GGPT4 Correct Assistant:⟪§C {c}§E<|end_of_turn|>⟫",
        prompt="GPT4 Correct Assistant:",
        bos="<s>",
    ),
    "baichuan": Shape(
        system="§Y{c}",
        user="§S<reserved_106>§I{c}",
        answer="§G<reserved_107>⟪§C{c}§E</s>⟫",
        prompt="<reserved_107>",
        more=("<reserved_106>", "<reserved_107>"),
    ),
    "harmony": Shape(
        default="§S<|start|>system<|message|>§BYou are a large language model.§S<|end|>",
        system="§S<|start|>developer<|message|># Instructions\n\n§Y{c}§S<|end|>",
        user="§S<|start|>user<|message|>§I{c}§S<|end|>",
        answer="§G<|start|>assistant⟪§C<|channel|>final<|message|>{c}§E<|end|>⟫",
        last="§G<|start|>assistant⟪§C<|channel|>final<|message|>{c}§E<|return|>⟫",
        call="§G<|start|>assistant⟪§K to=functions.{n}<|channel|>commentary json<|message|>{a}"
        "§E<|call|>⟫",
        result="§S<|start|>functions to=assistant<|channel|>commentary<|message|>§R{c}§S<|end|>",
        prompt="<|start|>assistant",
    ),
    "minimax": Shape(
        system="§S<beginning_of_sentence>system\n§Y{c}§S<end_of_sentence>\n",
        user="§S<beginning_of_sentence>user\n§I{c}§S<end_of_sentence>\n",
        answer="§G<beginning_of_sentence>ai\n⟪§C{c}§E<end_of_sentence>⟫§S\n",
        prompt="<beginning_of_sentence>ai\n",
        more=("<beginning_of_sentence>", "<end_of_sentence>"),
    ),
    "seed": Shape(
        system="§S<seed:bos>system\n§Y{c}§S<seed:eos>",
        user="§S<seed:bos>user\n§I{c}§S<seed:eos>",
        answer="§G<seed:bos>assistant\n⟪§C{c}§E<seed:eos>⟫",
        thought="§G<seed:bos>assistant\n⟪§T<seed:think>{t}</seed:think>§C{c}§E<seed:eos>⟫",
        prompt="<seed:bos>assistant\n",
        more=("<seed:bos>", "<seed:eos>"),
    ),
}
ADD = {"type": "function", "function": {"name": "add", "description": "Adds two numbers."}}
U1, U2 = "Hi, user: assistant?", "And\n\n### now?"
A1, A2 = "Yes. user\nNo.", "<b>Fine</b>"


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CALLED = [{"type": "function", "function": {"name": "add", "arguments": {"x": 'one\n"1"', "y": 2}}}]
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], bool]] = {  # messages, and whether with tools
    "one": ([said("user", U1), said("assistant", A1)], False),
    "more": (
        [said("user", U1), said("assistant", A1), said("user", U2), said("assistant", A2)],
        False,
    ),
    "blanks": ([said("user", f" {U1}\n"), said("assistant", f"\n {A1} \n")], False),
    "system": (
        [said("system", "Hum."), said("user", U1), said("assistant", A1), said("user", U2),
         said("assistant", A2)],
        False,
    ),
    "thought": (
        [said("user", U1), said("assistant", A1, reasoning_content="Why not?"), said("user", U2),
         said("assistant", A2, reasoning_content="Because.")],
        False,
    ),
    "call": (
        [said("user", U1), said("assistant", "", tool_calls=CALLED), said("tool", "3 {\"ok\"}"),
         said("assistant", A1)],
        False,
    ),
    "call last": ([said("user", U1), said("assistant", "", tool_calls=CALLED)], False),
    "tools": (
        [said("user", U1), said("assistant", "", tool_calls=CALLED), said("tool", "3"),
         said("assistant", A1), said("user", U2), said("assistant", A2)],
        True,
    ),
}  # fmt: skip


def plain(text: str) -> str:
    """Return the text without labels and marks."""
    return re.sub("§.|[⟪⟫]", "", text)


def composed(shape: Shape, messages: list[dict[str, Any]], tools: bool) -> str:
    """Return the conversation's labelled text, put together of the shape's turns."""
    clean = str.strip if shape.strip else str
    users = [i for i, m in enumerate(messages) if m["role"] == "user"]
    told = messages[0]["content"] if messages[0]["role"] == "system" else ""
    found = shape.start
    if tools:
        found += shape.tools.replace("{d}", json.dumps([ADD]))
    elif told and not shape.fold:
        found += shape.system.replace("{c}", told)
    elif not told:
        found += shape.default
    for number, message in enumerate(messages):
        content, last = clean(message["content"]), number == len(messages) - 1
        if message["role"] == "user":
            here = number == (users[-1] if shape.fold == "last" else users[0]) and told
            folded = shape.system.replace("{c}", told) if shape.fold and here else ""
            found += shape.user.replace("{f}", folded).replace("{c}", content)
        elif "tool_calls" in message:
            given = json.dumps(CALLED[0]["function"]["arguments"], ensure_ascii=False)
            found += shape.call.replace("{n}", "add").replace("{a}", given)
        elif message["role"] == "tool":
            found += shape.result.replace("{c}", content)
        elif "reasoning_content" in message and (shape.keep or last):
            found += shape.thought.replace("{t}", message["reasoning_content"]).replace(
                "{c}", content
            )
        elif message["role"] == "assistant":
            found += (shape.last if shape.last and last else shape.answer).replace("{c}", content)
    return found + shape.end


def written(text: str, marks: bool, **values: str) -> str:
    """Return a labelled text as Jinja, with expressions for its places."""
    found = []
    for piece in re.split(r"({[a-z]}|[⟪⟫])", re.sub("§.", "", text)):
        if piece in ("⟪", "⟫"):
            tag = "generation" if piece == "⟪" else "endgeneration"
            found.append("{% " + tag + " %}" if marks else "")
        elif re.fullmatch("{[a-z]}", piece):
            found.append("{{ " + values[piece[1]] + " }}")
        elif piece:
            found.append("{{ '" + piece.replace("\\", "\\\\").replace("'", "\\'") + "' }}")
    return "".join(found)


def template(shape: Shape, marks: bool) -> str:
    """Return the shape as a chat template, with or without marks of what is generated."""
    c = "m.content | trim" if shape.strip else "m.content"
    which = "0" if shape.fold == "first" else "seen.last"
    folded = (
        "{% if told and loop.index0 == "
        + which
        + " %}"
        + written(shape.system if shape.fold else "", marks, c="told")
        + "{% endif %}"
    )
    head, _, tail = shape.user.partition("{f}") if "{f}" in shape.user else (shape.user, "", "")
    user = written(head, marks, c=c) + folded + written(tail, marks, c=c)
    call = {
        "n": "m.tool_calls[0].function.name",
        "a": "m.tool_calls[0].function.arguments | tojson",
    }
    thought = {"c": c, "t": "m.reasoning_content"}
    shown = "m.reasoning_content" + ("" if shape.keep else " and loop.last")
    own = "" if shape.fold else written(shape.system, marks, c="told")
    end = written(shape.end, marks)
    return "".join(
        [
            written(shape.start, marks),
            "{% set told = messages[0].content if messages[0].role == 'system' else '' %}",
            "{% if told %}{% set messages = messages[1:] %}{% endif %}",
            "{% set seen = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}",
            "{% set seen.last = loop.index0 %}{% endif %}{% endfor %}{% if tools %}"
            + written(shape.tools, marks, d="tools | tojson"),
            "{% elif told %}" + own + "{% else %}" + written(shape.default, marks) + "{% endif %}",
            "{% for m in messages %}{% if m.role == 'user' %}" + user,
            "{% elif m.role == 'tool' %}" + written(shape.result, marks, c=c),
            "{% elif m.tool_calls %}" + written(shape.call, marks, **call),
            "{% elif " + shown + " %}" + written(shape.thought, marks, **thought),
            "{% elif loop.last %}" + written(shape.last or shape.answer, marks, c=c),
            "{% else %}" + written(shape.answer, marks, c=c) + "{% endif %}{% endfor %}",
            "{% if add_generation_prompt %}" + written(shape.prompt, marks) if shape.prompt else "",
            ("{% else %}" + end + "{% endif %}") if shape.prompt else end,
        ]
    )


def labels(text: str, marks: bool) -> str:
    """Return the label of every character of a labelled text, by what is marked if asked to."""
    found, label, inside = [], "", False
    for piece in re.split("(§.|[⟪⟫])", text):
        if piece.startswith("§"):
            label = piece[1]
        elif piece in ("⟪", "⟫"):
            inside = piece == "⟪"
        else:
            found.append(_by_marks(label, inside) * len(piece) if marks else label * len(piece))
    return "".join(found)


def _by_marks(label: str, inside: bool) -> str:
    """Return the label under marks: inside all is the answer's, outside nothing is."""
    if inside:
        return label if label in ANSWER else "C"
    return {"C": "I", "T": "I", "K": "I", "E": "S"}.get(label, label)


def conversations(shape: Shape) -> Iterator[tuple[str, list[dict[str, Any]], bool]]:
    """Yield the conversations that the template knows: name, messages, whether with tools."""
    needs = {"system": shape.system, "thought": shape.thought, "call": shape.call,
             "call last": shape.call, "tools": shape.tools and shape.call}  # fmt: skip
    for name, (messages, tools) in CONVERSATIONS.items():
        if needs.get(name, True):
            yield name, messages, tools


def folder_of(shape: Shape, marks: bool, kind: str, path: Path) -> Path:
    """Return a folder with a tokenizer of bytes and the shape's tags as tokens of a kind."""
    tags = shape.tokens() if kind != "text" else ["</s>"]
    backend = byte_level([])
    backend.add_tokens([AddedToken(t, special=kind == "special", normalized=False) for t in tags])
    backend.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    named = {"eos_token": "</s>"} | ({"bos_token": shape.bos} if shape.bos in tags else {})
    return save(path, backend, chat_template=template(shape, marks), **named)


def row_of(messages: list[dict[str, Any]], tools: bool, dataset: Dataset) -> Any:
    fields = {"messages": messages} | ({"tools": [ADD]} if tools else {})
    return reader(dataset, set(fields))(Record(fields=fields, place="line 1"))


DATASET = Dataset(
    name="d", source="local", path="d", format="messages", template="chat",
    splits=Splits(train=(0.0, 1.0), validation=(1.0, 1.0), test=(1.0, 1.0)),
)  # fmt: skip


def labelled(found: Any, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return every token's text with its label."""
    encoded = tokenizer.encode(found.text)
    _, owners = token_roles(found, encoded, boundary="offset", tokenizer=tokenizer)
    kinds = [found.spans[owner].kind for owner in owners]
    texts = [found.text[a:b] for a, b in zip(encoded.starts, encoded.ends, strict=True)]
    names = [(k.detail or k.role).name.lower() for k in kinds]
    return [(t, LABELS[n]) for t, n in zip(texts, names, strict=True)]


@pytest.mark.parametrize("kind", ["special", "added", "text"])
@pytest.mark.parametrize("marks", [False, True], ids=["bare", "marks"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_token_by_hand(name: str, marks: bool, kind: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    tokenizer = Tokenizer(folder_of(shape, marks, kind, tmp_path / "t"))
    for talk, messages, tools in conversations(shape):
        whole = composed(shape, messages, tools)
        found = render(row_of(messages, tools, DATASET), DATASET, tokenizer)
        assert found.text == plain(whole), talk
        expected = labels(whole, marks)
        encoded = tokenizer.encode(found.text)
        by_hand = [
            (found.text[a:b], expected[a])
            for a, b in zip(encoded.starts, encoded.ends, strict=True)
        ]
        assert labelled(found, tokenizer) == by_hand, talk


QWEN_3_CALLS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{% if m.content %}{{ '\\n' }}{% endif %}"
    '{{ \'<tool_call>\n{"name": "\' + c.function.name '
    "+ '\", \"arguments\": ' + (c.function.arguments | tojson) + '}\n</tool_call>' }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HARMONY = (  # each channel is a message of its own
    "{% for m in messages %}{{ '<|start|>' + m.role }}{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content %}{{ '<|channel|>analysis<|message|>' + m.reasoning_content "
    "+ '<|end|><|start|>assistant' }}{% endif %}{% if m.tool_calls %}{{ ' to=functions.' "
    "+ m.tool_calls[0].function.name + '<|channel|>commentary<|message|>' "
    "+ (m.tool_calls[0].function.arguments | tojson) + '<|call|>' }}"
    "{% else %}{{ '<|channel|>final<|message|>' + m.content + '<|end|>' }}{% endif %}"
    "{% else %}{{ '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
ACTIONS = (  # names reasoning in tags of its own, before answers and calls
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|BOT|><|START_THINKING|>' "
    "+ (m.reasoning_content or '') + '<|END_THINKING|>' }}{% if m.tool_calls %}"
    '{{ \'<|START_ACTION|>[{"tool_name": "\' + m.tool_calls[0].function.name + \'", "args": \' '
    "+ (m.tool_calls[0].function.arguments | tojson) + '}]<|END_ACTION|><|EOT|>' }}{% else %}"
    "{{ '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|><|EOT|>' }}{% endif %}"
    "{% else %}{{ '<|USER|>' + m.content + '<|EOT|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|BOT|>' }}{% endif %}"
)
LAST_TOOLS = (  # definitions before the last request, no prompt
    "{% set users = messages | selectattr('role', 'equalto', 'user') | list | length %}"
    "{% set seen = namespace(users=0) %}{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set seen.users = seen.users + 1 %}{% if tools and seen.users == users %}"
    "{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST]' + m.content + '[/INST]' }}{% elif m.role == 'tool' %}"
    "{{ '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}{% elif m.tool_calls %}"
    '{{ \'[TOOL_CALLS][{"name": "\' + m.tool_calls[0].function.name + \'", "arguments": \' '
    "+ (m.tool_calls[0].function.arguments | tojson) + '}]</s>' }}"
    "{% else %}{{ m.content + '</s>' }}{% endif %}{% endfor %}"
)
OPENED = (  # a prompt that opens reasoning, which an answer's content may hold
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
HEADED = (  # the answer's header in the request's turn, and no prompt
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content "
    "+ '<|im_end|>\n<|im_start|>assistant\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}"
)
ADDED = [{"type": "function", "function": {"name": "add", "arguments": {"x": "1"}}}]
ASKED, CALLING = said("user", "a"), said("assistant", "", tool_calls=ADDED)
ASK = "§S<|im_start|>user\n§Ia§S<|im_end|>\n"
ADD_CALL = '<tool_call>\n{"name": "add", "arguments": {"x": "1"}}\n</tool_call>§E<|im_end|>§S\n'
BY_HAND: dict[str, tuple[str, list[dict[str, Any]], bool, str]] = {  # whether with tools; labels
    "reasoning before a call": (
        QWEN_3_CALLS,
        [ASKED, CALLING | {"reasoning_content": "why"}],
        False,
        f"{ASK}§G<|im_start|>assistant\n§T<think>\nwhy\n</think>\n\n§K{ADD_CALL}",
    ),
    "empty reasoning before a call": (
        QWEN_3_CALLS,
        [ASKED, CALLING],
        False,
        f"{ASK}§G<|im_start|>assistant\n§T<think>\n\n</think>\n\n§K{ADD_CALL}",
    ),
    "channels": (
        HARMONY,
        [ASKED, said("assistant", "b", reasoning_content="why"), ASKED, said("assistant", "c")],
        False,
        "§S<|start|>user<|message|>§Ia§S<|end|>"
        "§G<|start|>assistant§T<|channel|>analysis<|message|>why<|end|>"
        "§C<|start|>assistant<|channel|>final<|message|>b§E<|end|>"
        "§S<|start|>user<|message|>§Ia§S<|end|>"
        "§G<|start|>assistant§C<|channel|>final<|message|>c§E<|end|>",
    ),
    "channels, a call": (
        HARMONY,
        [ASKED, CALLING | {"reasoning_content": "why"}, said("tool", "r"), said("assistant", "b")],
        False,
        "§S<|start|>user<|message|>§Ia§S<|end|>"
        "§G<|start|>assistant§T<|channel|>analysis<|message|>why<|end|>"
        '§K<|start|>assistant to=functions.add<|channel|>commentary<|message|>{"x": "1"}§E<|call|>'
        "§S<|start|>tool<|message|>§Rr§S<|end|>"
        "§G<|start|>assistant§C<|channel|>final<|message|>b§E<|end|>",
    ),
    "other tags of reasoning": (
        ACTIONS,
        [ASKED, CALLING, said("tool", "r"), said("assistant", "b", reasoning_content="why")],
        False,
        "§S<|USER|>§Ia§S<|EOT|>§G<|BOT|>§T<|START_THINKING|><|END_THINKING|>"
        '§K<|START_ACTION|>[{"tool_name": "add", "args": {"x": "1"}}]<|END_ACTION|>§E<|EOT|>'
        "§S<|USER|>§Rr§S<|EOT|>§G<|BOT|>§T<|START_THINKING|>why<|END_THINKING|>"
        "§C<|START_RESPONSE|>b§E<|END_RESPONSE|><|EOT|>",
    ),
    "definitions at the last request": (
        LAST_TOOLS,
        [ASKED, CALLING, said("tool", "r"), CALLING, said("tool", "r"), said("assistant", "b"),
         ASKED, CALLING],
        True,
        "§S<s>[INST]§Ia§S[/INST]"
        + 2 * (
            '§K[TOOL_CALLS][{"name": "add", "arguments": {"x": "1"}}]§E</s>'
            "§S[TOOL_RESULTS]§Rr§S[/TOOL_RESULTS]"
        )
        + f"§Cb§E</s>§S[AVAILABLE_TOOLS]§D{json.dumps([ADD])}§S[/AVAILABLE_TOOLS][INST]§Ia§S[/INST]"
        '§K[TOOL_CALLS][{"name": "add", "arguments": {"x": "1"}}]§E</s>',
    ),
    "what the prompt opens stands in the content": (
        OPENED,
        [ASKED, said("assistant", "<think>\nh\n</think>\n\nx")] * 2,
        False,
        2 * (
            f"{ASK}§G<|im_start|>assistant\n<think>\n§Th\n</think>§C\n\nx§E<|im_end|>§S\n"
        ),
    ),
    "a closing tag behind what the prompt opens": (
        OPENED,
        [ASKED, said("assistant", "h\n</think>\n\nx")],
        False,
        f"{ASK}§G<|im_start|>assistant\n§Th\n</think>§C\n\nx§E<|im_end|>§S\n",
    ),
    "a closing tag that the template reads": (
        QWEN_3_CALLS.replace(
            "(m.reasoning_content or '')",
            "(m.content.split('</think>')[0] if '</think>' in m.content else '')",
        )
        .replace("+ m.content }}", "+ m.content.split('</think>')[-1] }}"),
        [ASKED, said("assistant", "h</think>x")],
        False,
        f"{ASK}§G<|im_start|>assistant\n§T<think>\nh\n</think>\n\n§Cx§E<|im_end|>§S\n",
    ),
    "a closing tag that is a word": (
        HEADED,
        [ASKED, said("assistant", "Close it by </think> then.")],
        False,
        "§S<|im_start|>user\n§Ia§S<|im_end|>\n<|im_start|>assistant\n"
        "§CClose it by </think> then.§E<|im_end|>§S\n",
    ),
    "reasoning within a channel": (
        HARMONY,
        [ASKED, said("assistant", "<think>h</think>x")],
        False,
        "§S<|start|>user<|message|>§Ia§S<|end|>§G<|start|>assistant"
        "§C<|channel|>final<|message|>§T<think>h</think>§Cx§E<|end|>",
    ),
    "the header in the request's turn": (
        HEADED,
        [ASKED, said("assistant", "<think>\nh\n</think>\n\nx")] * 2,
        False,
        2 * (
            "§S<|im_start|>user\n§Ia§S<|im_end|>\n<|im_start|>assistant\n"
            "§T<think>\nh\n</think>§C\n\nx§E<|im_end|>§S\n"
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_where_answers_and_their_parts_begin(name: str, tmp_path: Path) -> None:
    jinja, messages, tools, whole = BY_HAND[name]
    found = Shape(user=whole, answer="").tokens()
    backend = byte_level([])
    backend.add_tokens([AddedToken(tag, special=True, normalized=False) for tag in found])
    tokenizer = Tokenizer(save(tmp_path / "t", backend, chat_template=jinja, eos_token="</s>"))
    row = render(row_of(messages, tools, DATASET), DATASET, tokenizer)
    assert row.text == plain(whole)
    expected, encoded = labels(whole, False), tokenizer.encode(row.text)
    pairs = zip(encoded.starts, encoded.ends, strict=True)
    assert labelled(row, tokenizer) == [(row.text[a:b], expected[a]) for a, b in pairs]
