"""What users' programs do, with the official OpenAI client: `python openai_client.py BASE_URL MODEL`.

Every check is an assertion; the last line printed is `ok`.
"""

import sys
import threading

import openai

BASE_URL, MODEL = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=BASE_URL, api_key="unused", max_retries=0, timeout=120)
ASK = [{"role": "user", "content": "Name three colours of the rainbow."}]


def models():
    listed = [model.id for model in client.models.list()]
    assert listed == [MODEL], listed
    assert client.models.retrieve(MODEL).id == MODEL


def chat():
    reply = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=16, temperature=0)
    choice = reply.choices[0]
    assert reply.object == "chat.completion" and reply.model == MODEL
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    return choice.message.content


def stream(whole):
    parts, finish, usage = [], None, None
    chunks = client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=16, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    for index, chunk in enumerate(chunks):
        if index == 0:
            assert chunk.choices[0].delta.role == "assistant"
        if chunk.usage:
            assert chunk.choices == []
            usage = chunk.usage
        for choice in chunk.choices:
            parts.append(choice.delta.content or "")
            finish = choice.finish_reason or finish
    assert "".join(parts) == whole, (parts, whole)
    assert finish in ("stop", "length") and usage.completion_tokens > 0


def choices_and_seed():
    def texts():
        reply = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=12, n=3, seed=7, temperature=1)
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        return [choice.message.content for choice in reply.choices]

    first = texts()
    assert len(set(first)) > 1, "three choices are drawn apart"
    noise = [threading.Thread(target=chat) for _ in range(4)]
    for thread in noise:
        thread.start()
    assert texts() == first, "a seed decides the text, whatever else is in the batch"
    for thread in noise:
        thread.join()


def logprobs():
    reply = client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    content = reply.choices[0].logprobs.content
    assert len(content) == reply.usage.completion_tokens
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert abs(token.top_logprobs[0].logprob - token.logprob) < 1e-4, "greedy takes the likeliest"


def completions():
    reply = client.completions.create(
        model=MODEL, prompt=["One, two,", "The sea is"], max_tokens=8, temperature=0, echo=True
    )
    assert reply.choices[0].text.startswith("One, two,") and reply.choices[1].text.startswith("The sea is")
    parts = [c.choices[0].text for c in client.completions.create(
        model=MODEL, prompt="One, two,", max_tokens=8, temperature=0, stream=True) if c.choices]
    assert "One, two," + "".join(parts) == reply.choices[0].text


def stops():
    reply = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Count from one to ten."}], max_tokens=60, temperature=0
    )
    text = reply.choices[0].message.content
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Count from one to ten."}],
        max_tokens=60,
        temperature=0,
        stop=[stop],
    )
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].message.content == text[: text.index(stop)]


def errors():
    bad = [
        (openai.BadRequestError, dict(messages=ASK, max_tokens=-1)),
        (openai.BadRequestError, dict(messages=ASK, temperature=99)),
        (openai.BadRequestError, dict(messages=[])),
        (openai.BadRequestError, dict(messages=ASK, n=100000)),
        (openai.BadRequestError, dict(messages=ASK, logit_bias={"99999999": 1})),
        (openai.BadRequestError, dict(messages=[{"role": "user", "content": "long " * 20000}])),
    ]
    for kind, arguments in bad:
        try:
            client.chat.completions.create(model=MODEL, **arguments)
        except kind as error:
            assert error.body["message"] and error.body["type"], error.body
        else:
            raise AssertionError(f"{arguments} was let in")
    try:
        client.chat.completions.create(model="no-such-model", messages=ASK)
    except openai.NotFoundError as error:
        assert "no-such-model" in error.body["message"]
    else:
        raise AssertionError("an unknown model was let in")


models()
stream(chat())
choices_and_seed()
logprobs()
completions()
stops()
errors()
chat()
print("ok")
