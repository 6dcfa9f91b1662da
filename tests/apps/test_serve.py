"""The server, as its clients meet it: over HTTP, through the OpenAI library."""

from __future__ import annotations

import fcntl
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import openai
import pydantic
import pytest
from starlette.testclient import TestClient

import mirror_edge
from mirror_edge import Chunk, Sampling
from mirror_edge import bundle as bundles
from mirror_edge.apps.serve.request import Defaults
from mirror_edge.apps.serve.server import application
from mirror_edge.errors import ClosedError
from mirror_edge.stats import Stats

COMMAND = str(Path(sys.executable).parent / "mirror-edge")
STORY: list[Any] = [{"role": "user", "content": "Tell me a story about a fox."}]


@contextmanager
def serving(*words: str) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    """A server at a free port, and a client of it."""
    command = [COMMAND, "serve", "--port", "0", "--target-threads", "1", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            address = server.stderr.readline().split(" at ")[1].split(". ")[0]
            with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
                yield server, client
        finally:
            server.kill()


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with serving("--allow-origin", "http://localhost:3000") as (_, client):
        yield client


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    (only,) = client.models.list().data
    assert client.models.retrieve(only.id) == only
    return only.id


def post(
    client: openai.OpenAI, path: str, body: str, **headers: str
) -> tuple[int, http.client.HTTPMessage, str]:
    """What comes back, its errors too."""
    url = client.base_url
    connection = http.client.HTTPConnection(url.host, url.port, timeout=60)
    sent = {"Content-Type": "application/json"} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    connection.request("POST", f"/v1/{path}", body, sent)
    reply = connection.getresponse()
    try:
        return reply.status, reply.msg, reply.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_answer_is_that_of_the_library(
    client: openai.OpenAI, model: str, demo: mirror_edge.Model, temperature: float
) -> None:
    answer = client.chat.completions.create(
        model=model, messages=STORY, max_tokens=40, temperature=temperature, seed=5,
        extra_body={"min_p": 0.0},
    )  # fmt: skip
    known = demo.generate(
        STORY, max_new_tokens=40, sampling=Sampling(temperature=temperature, seed=5)
    )
    (choice,) = answer.choices
    assert choice.message.content == known.text
    assert choice.finish_reason == known.finish_reason
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(known.tokens)
    assert answer.usage.prompt_tokens == known.stats.prompt_tokens


def test_the_pieces_of_a_stream_are_the_answer(client: openai.OpenAI, model: str) -> None:
    asked: Any = {"model": model, "messages": STORY, "max_tokens": 30, "seed": 1}
    whole = client.chat.completions.create(**asked)
    pieces = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    *said, last = pieces
    assert said[0].choices[0].delta.role == "assistant"
    assert len(said) > 3
    assert (
        "".join(p.choices[0].delta.content or "" for p in said) == whole.choices[0].message.content
    )
    assert [p.choices[0].finish_reason for p in said][-2:] == [None, whole.choices[0].finish_reason]
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert len({piece.id for piece in pieces}) == 1
    assert getattr(said[-1], "mirror_edge")["seed"] == 1  # noqa: B009 - a field of ours


def test_a_text_is_continued_up_to_a_stop_string(
    client: openai.OpenAI, model: str, demo: mirror_edge.Model
) -> None:
    known = demo.generate("Once upon a time", max_new_tokens=40).text
    stop = known.split()[3]
    asked: Any = {"model": model, "max_tokens": 40, "temperature": 0}
    begun = "Once upon a time"
    whole = client.completions.create(**asked, prompt=begun, stop=stop)
    streamed = client.completions.create(
        **asked, prompt=[begun], stop=[stop, "never said"], stream=True
    )
    assert whole.choices[0].text == known[: known.index(stop)] != ""
    assert "".join(piece.choices[0].text for piece in streamed) == whole.choices[0].text
    assert whole.choices[0].finish_reason == "stop"


def test_an_answer_without_a_seed_names_the_one_it_had(client: openai.OpenAI, model: str) -> None:
    asked: Any = {"model": model, "messages": STORY, "max_tokens": 30, "temperature": 1.0}
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    seed = getattr(first, "mirror_edge")["seed"]  # noqa: B009 - a field of ours
    assert seed != getattr(second, "mirror_edge")["seed"]  # noqa: B009
    again = client.chat.completions.create(**asked, seed=seed)
    assert again.choices[0].message.content == first.choices[0].message.content


def test_a_second_turn_reads_only_what_is_new(client: openai.OpenAI, model: str) -> None:
    first = client.chat.completions.create(model=model, messages=STORY, max_tokens=20, seed=2)
    said: Any = {"role": "assistant", "content": first.choices[0].message.content}
    more: Any = [*STORY, said, {"role": "user", "content": "And then?"}]
    second = client.chat.completions.create(model=model, messages=more, max_tokens=5)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    kept = second.usage.prompt_tokens_details.cached_tokens
    assert kept is not None
    assert kept >= first.usage.prompt_tokens


def test_content_in_parts_and_settings_that_change_nothing_are_understood(
    client: openai.OpenAI, model: str
) -> None:
    plain = client.chat.completions.create(model=model, messages=STORY, max_tokens=9, temperature=0)
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": STORY[0]["content"]}]}]
    more: Any = {
        "n": 1, "frequency_penalty": 0, "logit_bias": {}, "logprobs": False, "user": "somebody",
        "response_format": {"type": "text"}, "stop": None, "top_p": 1, "seed": 1.0,
    }  # fmt: skip
    other = client.chat.completions.create(
        model=model, messages=parts, max_completion_tokens=9, temperature=1e-8, **more
    )
    assert other.choices[0].message.content == plain.choices[0].message.content


class Card(pydantic.BaseModel):
    title: Annotated[str, pydantic.Field(max_length=20)]
    animal: Literal["fox", "hen"]


def test_penalties_are_those_of_the_library(
    client: openai.OpenAI, model: str, demo: mirror_edge.Model
) -> None:
    asked: Any = {"presence_penalty": 0.5, "frequency_penalty": 1.5}
    answer = client.chat.completions.create(
        model=model, messages=STORY, max_tokens=60, temperature=0, **asked
    )
    known = demo.generate(STORY, max_new_tokens=60, sampling=Sampling(**asked))
    assert answer.choices[0].message.content == known.text
    assert known.text != demo.generate(STORY, max_new_tokens=60).text


def test_an_answer_has_the_form_that_was_asked_for(client: openai.OpenAI, model: str) -> None:
    asked: Any = {"model": model, "messages": STORY, "max_tokens": 160, "temperature": 0}
    parsed = client.chat.completions.parse(**asked, response_format=Card)
    assert parsed.choices[0].message.parsed is not None
    assert parsed.choices[0].message.parsed.animal in {"fox", "hen"}
    whole = client.chat.completions.create(**asked, response_format={"type": "json_object"})
    assert (whole.choices[0].message.content or "").startswith("{")
    form = {"type": "json_schema", "json_schema": {"name": "card", "schema": {"const": "fox"}}}
    text = client.completions.create(
        model=model, prompt="Once", max_tokens=160, extra_body={"response_format": form}
    )
    assert text.choices[0].text == '"fox"'


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("chat/completions", "{", 400, "the body is not JSON"),
        ("chat/completions", "[" * 100_000, 400, "the body is not JSON"),
        ("chat/completions", "[]", 400, "must be a JSON object"),
        ("chat/completions", {}, 400, "messages is missing"),
        ("completions", {}, 400, "prompt is missing"),
        ("completions", {"prompt": ["a", "b"]}, 400, "it must be one non-empty string"),
        ("completions", {"prompt": ""}, 400, "prompt is \"\"; it must be one non-empty string"),
        ("completions", {"prompt": "a " * 3000}, 400, "tokens and the context"),
        ("completions", {"prompt": "a\ud800"}, 400, "an unpaired surrogate"),
        ("chat/completions", {"messages": []}, 400, "There are no messages"),
        ("chat/completions", {"messages": ["hello"]}, 400, "Message 0 must be"),
        ("chat/completions", {"messages": STORY, "model": "gpt"}, 404, "model is 'gpt'; here is"),
        ("chat/completions", {"messages": STORY, "n": 2}, 400, "n is 2, which is not supported"),
        ("chat/completions", {"messages": STORY, "tools": [{}]}, 400, "tools is"),
        ("chat/completions", {"messages": STORY, "mirostat": 1, "\ud800": 1}, 400, "mirostat"),
        ("chat/completions", {"messages": STORY, "temperature": "warm"}, 400, "temperature is"),
        ("chat/completions", {"messages": STORY, "temperature": -1}, 400, "temperature is -1"),
        ("chat/completions", {"messages": STORY, "temperature": True}, 400, "temperature is true"),
        ("chat/completions", {"messages": STORY, "top_k": 1.5}, 400, "top_k is 1.5"),
        ("chat/completions", {"messages": STORY, "max_tokens": 0}, 400, "max_tokens is 0"),
        ("chat/completions", {"messages": STORY, "max_tokens": 2.5}, 400, "must be a whole number"),
        ("chat/completions", {"messages": STORY, "temperature": 10**400}, 400, "temperature is 1"),
        ("chat/completions", {"messages": STORY, "stop": [""]}, 400, "every stop string must"),
        ("chat/completions", {"messages": STORY, "stop": [1]}, 400, "stop is [1]"),
        ("chat/completions", {"messages": STORY, "stop": ["a"] * 65}, 400, "stop has 65 strings"),
        ("chat/completions", {"messages": STORY, "stop": ["a" * 4097]}, 400, "4,097 characters"),
        ("chat/completions", {"messages": STORY, "stream": "yes"}, 400, "stream is \"yes\""),
        ("chat/completions", {"messages": STORY, "stream_options": {}}, 400, "_options requires"),
        (
            "chat/completions",
            {"messages": STORY, "max_tokens": 3, "max_completion_tokens": 4},
            400,
            "max_tokens and max_completion_tokens differ",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "a part that is not text",
        ),
        ("completions", {"prompt": "a", "response_format": "json"}, 400, "must be an object"),
        ("completions", {"prompt": "a", "response_format": {}}, 400, "its type must be text"),
        ("completions", {"prompt": "a", "response_format": {"type": "xml"}}, 400, "type must be"),
        (
            "completions",
            {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"name": 1}}},
            400,
            "with a schema under json_schema.schema",
        ),
        (
            "completions",
            {
                "prompt": "a",
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "frob"}},
                },
            },
            400,
            "the JSON schema is invalid",
        ),
        ("embeddings", {}, 404, "Not Found"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(
    client: openai.OpenAI, path: str, body: Any, status: int, said: str
) -> None:
    body = body if isinstance(body, str) else json.dumps(body)
    got, _, reply = post(client, path, body)
    error = json.loads(reply)["error"]
    assert got == status
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


def test_a_body_that_is_too_large_is_refused_without_being_kept(client: openai.OpenAI) -> None:
    code, _, said = post(client, "completions", json.dumps({"prompt": "a" * 5_000_000}))
    assert code == 413
    assert "bytes" in json.loads(said)["error"]["message"]


def test_a_long_prompt_holds_up_no_other_request(client: openai.OpenAI) -> None:
    url, long = client.base_url, json.dumps({"prompt": "ab " * 330_000})
    with ThreadPoolExecutor() as pool:
        refused = pool.submit(post, client, "completions", long)
        slowest = 0.0
        while not refused.done():
            began = time.monotonic()
            connection = http.client.HTTPConnection(url.host, url.port, timeout=60)
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200
            connection.close()
            slowest = max(slowest, time.monotonic() - began)
    assert refused.result()[0] == 400
    assert slowest < 0.5


def test_a_prompt_that_is_too_long_is_told_by_its_code(client: openai.OpenAI, model: str) -> None:
    long: Any = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=long)
    assert refused.value.code == "context_length_exceeded"


class Failing:
    """A model that ends an answer with `error`."""

    error: Exception = RuntimeError("a bug")

    bundle, context = bundles.read(bundles.demo(), verify=False), 1024

    async def astream(self, *_: object, **__: object) -> AsyncGenerator[Chunk]:
        yield Chunk("Once", (5,), None, Stats())
        raise self.error


def test_a_server_that_ends_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = Failing()
    model.error = ClosedError("the model was closed; load it again.")
    web = application(model, Defaults({}))  # type: ignore[arg-type]
    with TestClient(web) as asking:
        reply = asking.post("/v1/completions", json={"prompt": "Once"})
    assert reply.status_code == 503
    assert reply.json()["error"]["message"] == "the server is shutting down."
    assert not caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_that_nobody_expected_is_told_and_logged(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    web = application(Failing(), Defaults({}))  # type: ignore[arg-type]
    with TestClient(web, raise_server_exceptions=False) as asking:
        reply = asking.post("/v1/chat/completions", json={"messages": STORY, "stream": stream})
    told = reply.text.split("data: ")[-1] if stream else reply.text
    assert json.loads(told)["error"] == {
        "message": "a bug", "type": "server_error", "param": None, "code": None
    }  # fmt: skip
    assert reply.status_code == (200 if stream else 500)
    assert not stream or "RuntimeError: a bug" in caplog.text
    assert "[DONE]" not in reply.text


@contextmanager
def reader(client: openai.OpenAI, **request: Any) -> Iterator[socket.socket]:
    """Somebody who has asked for a chat, and takes in next to nothing unasked."""
    body, url = json.dumps({"messages": STORY, **request}).encode(), client.base_url
    with socket.socket() as asking:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        asking.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # As over a network.
        asking.connect((url.host, url.port or 80))
        asking.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        yield asking


def test_a_reader_that_does_not_read_keeps_nobody_waiting(
    client: openai.OpenAI, model: str
) -> None:
    """Its answer is longer than what the system keeps for it on the way."""
    long = {"stream": True, "seed": 2, "temperature": 1.0}
    with reader(client, **long) as idle:
        assert idle.recv(16).startswith(b"HTTP/1.1 200")
        kept = client.chat.completions.create(model=model, messages=STORY, max_tokens=3, timeout=30)
        assert kept.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [True, False])
def test_a_reader_that_leaves_makes_room_for_the_next(
    client: openai.OpenAI, model: str, stream: bool
) -> None:
    with ExitStack() as leaving:
        for _ in range(4):  # The first is answered, the others wait for their turn.
            leaving.enter_context(reader(client, temperature=1.0, stream=stream))
    kept = client.chat.completions.create(model=model, messages=STORY, max_tokens=3, timeout=30)
    assert kept.choices[0].finish_reason == "length"


def test_streams_that_are_left_in_the_middle_make_room_for_the_next(
    client: openai.OpenAI, model: str
) -> None:
    for _ in range(3):
        with client.chat.completions.create(
            model=model, messages=STORY, temperature=1.0, stream=True
        ) as stream:
            next(iter(stream))
        kept = client.chat.completions.create(model=model, messages=STORY, max_tokens=3, timeout=30)
        assert kept.choices[0].finish_reason == "length"


def test_answers_that_are_asked_for_at_once_wait_their_turn(
    client: openai.OpenAI, model: str
) -> None:
    def answer(seed: int) -> str | None:
        got = client.chat.completions.create(
            model=model, messages=STORY, max_tokens=25, temperature=0.8, seed=seed
        )
        return got.choices[0].message.content

    alone = [answer(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as at_once:
        assert list(at_once.map(answer, range(4))) == alone


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="pipes have their own size here")
def test_whoever_does_not_read_what_the_server_says_holds_up_no_answer() -> None:
    with serving() as (server, client):
        assert server.stderr is not None
        fcntl.fcntl(server.stderr, fcntl.F_SETPIPE_SZ, 4096)
        (model,) = client.models.list().data
        for _ in range(80):
            client.completions.create(model=model.id, prompt="A fox", max_tokens=2, timeout=20)


def test_no_web_page_can_ask_unless_it_was_let_in(client: openai.OpenAI) -> None:
    body = json.dumps({"messages": STORY, "max_tokens": 2})
    status, _, said = post(client, "chat/completions", body, Content_Type="text/plain")
    assert (status, "it must be application/json" in said) == (400, True)
    for host in ("rebound.example", "rebound.example:8080"):
        status, _, said = post(client, "chat/completions", body, Host=host)
        assert (status, "start the server with --allow-host rebound.example" in said) == (400, True)
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]", "[::1]:8080"):
        assert post(client, "chat/completions", body, Host=host)[0] == 200
    for origin, let_in in (("http://localhost:3000", True), ("http://elsewhere.example", False)):
        status, headers, _ = post(client, "chat/completions", body, Origin=origin)
        assert status == 200
        assert (headers.get("access-control-allow-origin") == origin) == let_in


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGINT], 0),
        ([signal.SIGINT, signal.SIGINT], 0),
        ([signal.SIGTERM], 143),
        ([signal.SIGHUP], 129),
    ],
)
def test_a_signal_ends_the_server_even_in_the_middle_of_an_answer(
    signals: list[signal.Signals], code: int
) -> None:
    with serving("--temperature", "1", "--mode", "mirror") as (server, client):
        model = client.models.list().data[0].id
        with client.chat.completions.create(model=model, messages=STORY, stream=True) as stream:
            next(iter(stream))
            for number in signals:
                server.send_signal(number)
                time.sleep(0.05)
            assert server.wait(timeout=30) == code
        assert server.stderr is not None
        assert "Traceback" not in server.stderr.read()


def test_an_address_that_is_taken_is_refused_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [COMMAND, "serve", "nowhere", "--port", port],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert f"cannot listen on --host 127.0.0.1 --port {port}" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mode", "fast"], "mode is 'fast'"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--template", "messages=1"], "template variable 'messages' is reserved"),
        (["--host", "nowhere.invalid"], "cannot listen on --host nowhere.invalid"),
    ],
)
def test_what_no_request_could_be_answered_with_is_refused_at_once(
    words: list[str], said: str
) -> None:
    command = [COMMAND, "serve", "--port", "0", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_without_its_packages_the_server_names_what_to_install() -> None:
    bare = (
        "import sys; sys.modules['uvicorn'] = None; sys.argv = ['mirror-edge', 'serve']; "
        "from mirror_edge.apps.program import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", bare], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install 'mirror-edge[serve]'" in done.stderr
