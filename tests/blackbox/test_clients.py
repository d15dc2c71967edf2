"""The official clients, unchanged, against simulated servers (their engine's times and all)."""

import asyncio

import anthropic
import openai
import pytest

from harness.upstream import Fault


@pytest.fixture
def pointsman(start):
    return start("--sim", 2)


@pytest.fixture
def client(pointsman):
    return openai.OpenAI(base_url=pointsman.gateway + "/v1", api_key="unused", max_retries=0)


@pytest.fixture
def model(client) -> str:
    return client.models.list().data[0].id


ASK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which track?"}]


def test_openai_chat(client, model):
    answer = client.chat.completions.create(model=model, messages=ASK, max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 8


def test_openai_chat_streamed_with_usage(client, model):
    chunks = list(
        client.chat.completions.create(
            model=model, messages=ASK, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage.completion_tokens == 8


def test_openai_completions_streamed_and_not(client, model):
    assert client.completions.create(model=model, prompt="Which", max_tokens=4).choices[0].text
    chunks = client.completions.create(model=model, prompt="Which", max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)


def test_openai_responses_streamed_and_not(client, model):
    assert client.responses.create(model=model, input="Which track?", max_output_tokens=16).output_text
    events = list(client.responses.create(model=model, input="Which track?", max_output_tokens=16, stream=True))
    assert events[-1].type in ("response.completed", "response.incomplete")


def test_openai_errors_are_the_clients_own_types(client, model):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gigantic", messages=ASK)
    assert caught.value.body["message"]
    with pytest.raises(openai.BadRequestError):
        client.post("/chat/completions", body=[1], cast_to=object)


def test_openai_no_endpoint_is_an_internal_server_error_with_retry_after(start, pool_file):
    pointsman = start("-f", pool_file([]).path)
    client = openai.OpenAI(base_url=pointsman.gateway + "/v1", api_key="unused", max_retries=0)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="tiny", messages=ASK)
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_openai_async_client_with_many_requests(pointsman, model):
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=pointsman.gateway + "/v1", api_key="unused", max_retries=0) as client:

            async def ask(number: int) -> str:
                messages = [{"role": "user", "content": f"Question {number}"}]
                answer = await client.chat.completions.create(model=model, messages=messages, max_tokens=4)
                return answer.choices[0].message.content

            return await asyncio.gather(*map(ask, range(40)))

    assert all(asyncio.run(ask_all()))


def test_a_stream_that_breaks_is_an_api_error_in_the_client(start, upstreams):
    (server,) = upstreams(1)
    server.answers(tokens=6, fault=Fault.RESET_MID_ANSWER)
    pointsman = start("--endpoint", server.address)
    client = openai.OpenAI(base_url=pointsman.gateway + "/v1", api_key="unused", max_retries=0)
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model="tiny", messages=ASK, stream=True))


def test_anthropic_messages_streamed_and_not(pointsman, model):
    client = anthropic.Anthropic(base_url=pointsman.gateway, api_key="unused", max_retries=0)
    messages = [{"role": "user", "content": "Which track?"}]
    answer = client.messages.create(model=model, max_tokens=8, system="Be brief.", messages=messages)
    assert answer.content[0].text
    assert answer.usage.output_tokens == 8
    with client.messages.stream(model=model, max_tokens=8, messages=messages) as stream:
        assert "".join(stream.text_stream)
