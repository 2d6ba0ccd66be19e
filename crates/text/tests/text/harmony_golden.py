"""Makes harmony_golden.json with OpenAI's library: `python harmony_golden.py OUT.json [COUNT TOKENS.json]`.

Needs openai-harmony 0.0.8, and TIKTOKEN_ENCODINGS_BASE naming a folder with o200k_base.tiktoken. COUNT is of random
conversations; TOKENS.json gets the token ids, too, for the test that compares them over the real vocabulary.
"""

import json
import random
import sys

from openai_harmony import (
    Author, Conversation, DeveloperContent, HarmonyEncodingName, Message, ReasoningEffort, Role, SystemContent,
    StreamableParser, ToolDescription, load_harmony_encoding,
)

ENCODING = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
# 2025-06-28
UNIX_SECONDS = 1751068800
SCHEMAS = [
    None,
    {"type": "object", "properties": {}},
    {"type": "object", "properties": {"city": {"type": "string", "description": "The city, e.g. San Francisco, CA"},
                                      "format": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"}},
     "required": ["city"]},
    {"type": "object", "description": "all of it", "properties": {
        "n": {"type": "integer", "default": 5, "minimum": 1}, "b": {"type": "boolean", "default": True},
        "list": {"type": "array", "items": {"type": "string"}, "default": ["a", 1]}, "any": {"type": "array"},
        "rows": {"type": "array", "items": {"type": "object", "properties": {
            "x": {"type": "number", "description": "dx"}, "y": {"type": "string"}}, "required": ["x"]}},
        "deep": {"type": "object", "description": "nested", "properties": {
            "p": {"type": "string"}, "q": {"type": "object", "properties": {"z": {"type": "null"}}}}, "required": ["p"]},
        "empty": {"type": "object"}, "either": {"type": ["string", "null"], "description": "or nothing"},
        "both": {"type": ["string", "integer"], "default": "x"},
        "titled": {"type": "string", "title": "A title", "description": "two\nlines"},
        "null": {"type": "string", "nullable": True}, "quoted": {"type": "string", "default": "with \"quotes\""},
        "none": {"type": "string", "default": None}, "example": {"type": "string", "examples": ["e1", "e2"]},
        "ref": {"$ref": "#/$defs/X"}, "bare": {"description": "no type"}, "constant": {"const": "x"},
        "number": {"type": "number", "default": 0.5}, "anyOf": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "one": {"oneOf": [{"type": "string"}, {"type": "integer", "default": 3}, {"type": "string", "enum": ["a", "b"]}],
                "description": "one of three", "default": "a"},
        "inner": {"type": "object", "properties": {"one": {"oneOf": [{"type": "string"}, {"type": "boolean"}]}}},
        "ones": {"oneOf": [{"type": "object", "properties": {"k": {"type": "string"}}}, {"type": "null"}]},
    }},
]
TEXTS = ["Hello!", "Grüße, 世界 🚢", "def f(x):\n    return x\n", "two\n\nparagraphs", " leading and trailing ", "1 2 3 4567"]


def tool(name, description, schema):
    function = {"name": name, **({"description": description} if description else {}),
                **({"parameters": schema} if schema is not None else {})}
    return {"type": "function", "function": function}


def random_schema(rng, depth=0):
    kind = rng.choice(["string", "integer", "number", "boolean", "array", "object", "enum", "union", "oneOf"][: 9 if depth < 3 else 4])
    schema = {"type": kind}
    if kind == "array":
        schema = {"type": "array", **({"items": random_schema(rng, depth + 1)} if rng.random() < 0.8 else {})}
    elif kind == "object":
        names = rng.sample(["a", "b_c", "größe", "x", "y"], rng.randint(0, 4))
        schema = {"type": "object", "properties": {name: random_schema(rng, depth + 1) for name in names}}
        if names and rng.random() < 0.5:
            schema["required"] = rng.sample(names, 1)
    elif kind == "enum":
        schema = {"type": "string", "enum": ["a", "b c"]}
    elif kind == "union":
        schema = {"type": rng.sample(["string", "null", "integer", "boolean"], 2)}
    elif kind == "oneOf":
        schema = {"oneOf": [random_schema(rng, 3) for _ in range(rng.randint(1, 3))]}
    if rng.random() < 0.5:
        schema["description"] = rng.choice(TEXTS)
    if rng.random() < 0.3 and kind in ("string", "integer", "boolean", "enum"):
        schema["default"] = {"string": "a", "integer": 3, "boolean": False, "enum": "b c"}[kind]
    return schema


def random_function(rng):
    names = rng.sample(["a", "b", "c", "d"], rng.randint(1, 4))
    schema = {"type": "object", "properties": {name: random_schema(rng) for name in names}, "required": names[:1]}
    return tool("f", rng.choice(TEXTS), schema)


def conversations(count):
    user = {"role": "user", "content": "What is the weather in Paris?"}
    system = {"role": "system", "content": "Always answer in riddles.\nBe short."}
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
    asks = {"role": "assistant", "content": None, "reasoning": "I must look.", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "1", "name": "get_weather", "content": '{"sunny": true}'}
    final = {"role": "assistant", "content": "It is sunny.", "reasoning": "Sunny it is."}
    weather = tool("get_weather", "Gets the weather.\nNow.", SCHEMAS[2])
    yield dict(messages=[user])
    yield dict(messages=[user], reasoning_effort="low")
    yield dict(messages=[system, user], reasoning_effort="high")
    yield dict(messages=[user], tools=[tool("now", "The time.", None)])
    yield dict(messages=[system, user], tools=[weather, tool("now", None, SCHEMAS[1])])
    yield dict(messages=[system, user], tools=[tool("everything", "All kinds", SCHEMAS[3])])
    yield dict(messages=[user, asks, result], tools=[weather])
    yield dict(messages=[user, {**asks, "content": "Let me look."}, result], tools=[weather])
    yield dict(messages=[user, {**asks, "tool_calls": [call, {**call, "id": "2"}]}, result, result], tools=[weather])
    yield dict(messages=[user, asks, result, final, user], tools=[weather])
    yield dict(messages=[user, final, user, asks, result], tools=[weather])
    yield dict(messages=[user, final, user, final, user])
    yield dict(messages=[user, {**final, "reasoning": None}])
    rng = random.Random(7)
    for _ in range(count):
        messages = [{"role": "system", "content": rng.choice(TEXTS)}] if rng.random() < 0.5 else []
        for _ in range(rng.randint(1, 4)):
            messages.append({"role": "user", "content": rng.choice(TEXTS)})
            for index in range(rng.randint(0, 2)):
                arguments = json.dumps({"text": rng.choice(TEXTS)}, ensure_ascii=False)
                called = {"id": str(index), "type": "function", "function": {"name": "f", "arguments": arguments}}
                thoughts = {"reasoning": rng.choice(TEXTS)} if rng.random() < 0.7 else {}
                messages.append({"role": "assistant", "content": None, "tool_calls": [called], **thoughts})
                messages.append({"role": "tool", "tool_call_id": str(index), "name": "f", "content": rng.choice(TEXTS)})
            messages.append({"role": "assistant", "content": rng.choice(TEXTS), "reasoning": rng.choice(TEXTS)})
        yield dict(messages=messages[:-1] if rng.random() < 0.7 else messages, tools=[random_function(rng)])


def is_final(message):
    return message["role"] == "assistant" and not message.get("tool_calls")


def library(messages, tools=None, reasoning_effort="medium"):
    """The library's messages. It drops thoughts only where the conversation's last reply is final, and then of all
    replies before the first final one; the format's description drops those before any final one, which is done here."""
    effort = {"low": ReasoningEffort.LOW, "medium": ReasoningEffort.MEDIUM, "high": ReasoningEffort.HIGH}[reasoning_effort]
    system = SystemContent.new().with_reasoning_effort(effort).with_conversation_start_date("2025-06-28")
    made = [Message.from_role_and_content(Role.SYSTEM, system)]
    developer = DeveloperContent.new()
    if messages[0]["role"] == "system":
        developer = developer.with_instructions(messages[0]["content"])
    if tools:
        functions = [tool["function"] for tool in tools]
        developer = developer.with_function_tools(
            [ToolDescription.new(f["name"], f.get("description", ""), parameters=f.get("parameters")) for f in functions])
    if tools or messages[0]["role"] == "system":
        made.append(Message.from_role_and_content(Role.DEVELOPER, developer))
    finals = [index for index, message in enumerate(messages) if is_final(message)]
    last_final = finals[-1] if finals else -1
    for index, message in enumerate(messages):
        content = message["content"]
        if message["role"] == "user":
            made.append(Message.from_role_and_content(Role.USER, content))
        elif message["role"] == "tool":
            author = Author.new(Role.TOOL, "functions." + message["name"])
            made.append(Message.from_author_and_content(author, content).with_channel("commentary").with_recipient("assistant"))
        elif message["role"] == "assistant":
            say = lambda text, channel: Message.from_role_and_content(Role.ASSISTANT, text).with_channel(channel)
            if message.get("reasoning") and index > last_final:
                made.append(say(message["reasoning"], "analysis"))
            if content:
                made.append(say(content, "final" if is_final(message) else "commentary"))
            for call in message.get("tool_calls", []):
                to = "functions." + call["function"]["name"]
                made.append(say(call["function"]["arguments"], "commentary").with_recipient(to)
                            .with_content_type("<|constrain|>json"))
    return made


def replies():
    """What a model may say, and what the library's parser makes of it."""
    texts = [
        "<|channel|>analysis<|message|>Hm, 世界.<|end|><|start|>assistant<|channel|>final<|message|>So.<|return|>",
        "<|channel|>final<|message|>So.<|return|>",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>Wait.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\": 1}<|call|>",
        " to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
        " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
        "<|channel|>commentary to=functions.f<|message|>{}<|call|>",
        "<|channel|>analysis<|message|>cut off",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant to=functions.g<|channel|>commentary <|constrain|>json"
        "<|message|>{\"k\": \"}\"}<|call|>",
    ]
    for text in texts:
        tokens = ENCODING.encode(text, allowed_special="all")
        parser = StreamableParser(ENCODING, role=Role.ASSISTANT)
        for token in tokens:
            parser.process(token)
        said = [(m.channel, m.recipient, m.content[0].text) for m in parser.messages]
        if parser.current_content:
            said.append((parser.current_channel, parser.current_recipient, parser.current_content))
        yield {"text": text, "messages": [{"channel": c, "recipient": r, "text": t} for c, r, t in said]}, tokens


def main():
    cases, tokens = [], []
    for given in conversations(int(sys.argv[2]) if len(sys.argv) > 2 else 6):
        conversation = Conversation.from_messages(library(**given))
        ids = ENCODING.render_conversation_for_completion(conversation, Role.ASSISTANT)
        cases.append({**given, "text": ENCODING.decode_utf8(ids)})
        tokens.append(ids)
    parsed = list(replies())
    golden = {"unix_seconds": UNIX_SECONDS, "prompts": cases, "replies": [reply for reply, _ in parsed]}
    with open(sys.argv[1], "w") as out:
        json.dump(golden, out, ensure_ascii=False, indent=0)
    if len(sys.argv) > 3:
        with open(sys.argv[3], "w") as out:
            json.dump({"prompts": tokens, "replies": [ids for _, ids in parsed]}, out)


main()
