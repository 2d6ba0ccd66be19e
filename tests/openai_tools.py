"""Tools and thoughts with the official OpenAI client: `python openai_tools.py BASE_URL MODEL`.

The template of the server under test opens the thoughts where `enable_thinking` is set. The model is too small to call a
tool of its own accord: it is made to. Every check is an assertion; the last line printed is `ok`.
"""

import sys

import openai

BASE_URL, MODEL = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=BASE_URL, api_key="unused", max_retries=0, timeout=120)
ASK = {"role": "user", "content": "What is the weather in Paris?"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": PARAMETERS}}
CHOICE = {"type": "function", "function": {"name": "get_weather"}}


def ask(**fields):
    fields = {"messages": [ASK], "max_tokens": 24, "temperature": 0, **fields}
    return client.chat.completions.create(model=MODEL, **fields)


def streamed(**fields):
    """A streamed choice put together: content, reasoning, calls, why it ended."""
    content, reasoning, calls, finish = "", "", [], None
    for chunk in ask(stream=True, **fields):
        for choice in chunk.choices:
            delta = choice.delta
            content += delta.content or ""
            reasoning += getattr(delta, "reasoning", None) or ""
            for part in delta.tool_calls or []:
                if part.index == len(calls):
                    assert part.id and part.type == "function" and part.function.name, part
                    calls.append([part.function.name, ""])
                else:
                    assert part.id is None and part.function.name is None, part
                calls[part.index][1] += part.function.arguments or ""
            finish = choice.finish_reason or finish
    return content, reasoning, calls, finish


def calls():
    whole = ask(tools=[TOOL], tool_choice=CHOICE).choices[0]
    call = whole.message.tool_calls[0]
    assert call.type == "function" and call.id and call.function.name == "get_weather"
    assert call.function.arguments.startswith("{")
    assert whole.finish_reason in ("tool_calls", "length")
    content, _, parts, finish = streamed(tools=[TOOL], tool_choice="required")
    assert parts[0] == ["get_weather", call.function.arguments], (parts, call)
    assert content == (whole.message.content or "") and finish == whole.finish_reason
    return whole.message


def conversation(message):
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"sky": "clear"}'}
    reply = ask(messages=[ASK, message.model_dump(exclude_none=True), result], tools=[TOOL]).choices[0]
    assert reply.message.content and not reply.message.tool_calls, reply
    assert reply.finish_reason in ("stop", "length")


def thoughts():
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    reply = ask(extra_body=thinking)
    message = reply.choices[0].message
    assert message.reasoning and message.reasoning == message.reasoning_content
    assert 0 < reply.usage.completion_tokens_details.reasoning_tokens <= reply.usage.completion_tokens
    content, reasoning, _, _ = streamed(extra_body=thinking)
    assert (content, reasoning) == (message.content, message.reasoning)
    hidden = ask(extra_body={**thinking, "include_reasoning": False}).choices[0].message
    assert not hasattr(hidden, "reasoning") and hidden.content == message.content
    plain = ask(reasoning_effort="none")
    assert plain.choices[0].message.content and not hasattr(plain.choices[0].message, "reasoning")
    assert plain.usage.completion_tokens_details.reasoning_tokens == 0


def errors():
    two = [TOOL, {"type": "function", "function": {"name": "other"}}]
    bad = [
        dict(tools=[TOOL, TOOL]),
        dict(tools=two, tool_choice="required"),
        dict(tools=[{"type": "function", "function": {"name": "no spaces"}}]),
        dict(messages=[{"role": "tool", "content": "x"}]),
    ]
    for fields in bad:
        try:
            ask(**fields)
        except openai.BadRequestError as error:
            assert error.body["message"] and error.body["param"], error.body
        else:
            raise AssertionError(f"{fields} was let in")


conversation(calls())
thoughts()
errors()
print("ok")
