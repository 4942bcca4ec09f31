"""The judge over HTTP, against a server on the loopback: good answers, bad ones, troubles that pass and that do not."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from lotts import verifiers
from lotts.cli import main
from lotts.verifiers.base import Unjudged
from lotts.verifiers.chat import ChatEndpoint, ChatFailed, EndpointError
from lotts.verifiers.vlm import VLMJudge, parse_score

KEY = "sk-very-secret"
LIMIT = 40  # requests that a server answers before it refuses: a loop that never ends fails instead


def completion(content, **choice):
    return {"choices": [{"message": {"role": "assistant", "content": content}, **choice}]}


def shown(body):
    """The picture in a request."""
    url = body["messages"][1]["content"][1]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2], validate=True)))


def by_brightness(body):
    return completion(json.dumps({"score": round(float(np.asarray(shown(body)).mean()) / 25.5, 3)}))


class Server:
    """Answers each request with the next of ``replies``, and all others by the picture's brightness.

    A reply is (status, body, headers), or a function of the request's body.
    """

    def __init__(self):
        self.replies, self.requests, self.released = [], [], threading.Event()
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.requests.append((self.path, dict(self.headers), body))
                    reply = server.replies.pop(0) if server.replies else by_brightness
                    if len(server.requests) > LIMIT:
                        reply = (404, "too many requests", {})
                status, answer, headers = reply if isinstance(reply, tuple) else (200, reply(body), {})
                data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(data)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client gave up first

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def silence(self, body):
        self.released.wait(5)
        return by_brightness(body)

    def close(self):
        self.released.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch):
    for name in ("LOTTS_VLM_URL", "LOTTS_VLM_MODEL", "LOTTS_VLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def judge(server):
    return lambda **options: VLMJudge(
        server.url, "tiny-vlm", **{"api_key": KEY, "backoff": 0.01, "retries": 2} | options
    )


@pytest.fixture
def images():
    return [np.full((5, 7, 3), level / 255, np.float32) for level in (51, 255, 0, 102, 153)]


PROMPTS = ["a cat", 'a sign "OPEN"', "a cat", "a dog", "a dog"]
SCORES = [2, 10, 0, 4, 6]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_picture_gets_its_own_answer(judge, images, batch_size):
    scores = judge().score(images, PROMPTS, batch_size=batch_size)
    assert scores.dtype == torch.float32
    assert scores.tolist() == SCORES


def test_what_is_sent(server, judge, images):
    judge(options={"seed": 3}).score(images[:1], PROMPTS[1:2])
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["seed"]) == ("tiny-vlm", 3)
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["score"]
    assert body["messages"][1]["content"][0]["text"] == r'The text: "a sign \"OPEN\""'
    picture = shown(body)
    assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (7, 5), (51, 51, 51))
    assert not picture.info


def test_large_pictures_are_shrunk_and_options_left_out(server, judge):
    plain = judge(max_side=16, structured=False, api_key=None, options={})
    plain.score([Image.new("L", (64, 32), 51)], ["a cat"])
    ((_, headers, body),) = server.requests
    assert shown(body).size == (16, 8)
    assert set(body) == {"model", "messages"}
    assert "Authorization" not in headers


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"score": 7.5}', 7.5),
        (' {"reason": "a hand has six fingers", "score": 0}\n', 0),
        ('```json\n{"score": 10}\n```', 10),
        ('```\n{"score": 3e0}\n```\n', 3),
    ],
)
def test_strict_json_is_read(answer, score):
    assert parse_score(answer) == score


GARBAGE = [
    "",
    "7",
    "Score: 7",
    'I think {"score": 7}',
    '{"score": "7"}',
    '{"score": true}',
    '{"score": null}',
    '{"score": NaN}',
    '{"score": Infinity}',
    '{"score": 1e999}',
    '{"score": 10.01}',
    '{"score": -1}',
    '{"score": 1' + 400 * "0" + "}",
    '{"score": 3, "score": 9}',
    '{"rating": 7}',
    '[{"score": 7}]',
    '{"score": 7} {"score": 8}',
    "[" * 100_000,
]


@pytest.mark.parametrize("answer", GARBAGE)
def test_nothing_is_guessed(answer):
    with pytest.raises(ChatFailed, match="expected"):
        parse_score(answer)


def test_a_failed_judgement_names_the_picture(server, judge, images):
    server.replies = [by_brightness, by_brightness, lambda body: completion("What a lovely picture!")]
    with pytest.raises(Unjudged, match=r"vlm picture 2 \('a cat'\).*lovely") as caught:
        judge().score(images, PROMPTS, batch_size=1)
    assert caught.value.position == 2
    assert len(server.requests) == 3  # garbage is no passing trouble, and what follows is not asked


def test_a_failed_judgement_may_count_as_the_lowest(server, judge, images):
    server.replies = [by_brightness, (400, "content policy", {})]
    with pytest.warns(UserWarning, match=r"no score \(HTTP 400 .*content policy\): it counts as -1"):
        scores = judge(on_failure="lowest").score(images, PROMPTS, batch_size=1)
    assert scores.tolist() == [2, -1, 0, 4, 6]  # below the picture that was judged worst
    server.replies = [(400, "content policy", {})]
    with pytest.warns(UserWarning, match="counts as -1"), pytest.raises(ValueError, match="judged none of 1 pictures"):
        judge(on_failure="lowest").score(images[:1], PROMPTS[:1])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_troubles_are_retried(server, judge, images, status):
    server.replies = [(status, "later", {}), (status, "later", {"Retry-After": "0"})]
    assert judge().score(images[:1], PROMPTS[:1]).tolist() == SCORES[:1]
    assert len(server.requests) == 3
    assert server.requests[0][2] == server.requests[2][2]


def test_troubles_that_do_not_pass(server, judge, images):
    server.replies = [(500, "broken", {})] * 3
    with pytest.raises(Unjudged, match=r"no answer in 3 tries, the last time HTTP 500 .*broken"):
        judge().score(images[:1], PROMPTS[:1])
    assert len(server.requests) == 3


def test_retry_after_is_waited_for(server, judge, images, monkeypatch):
    waits = []
    monkeypatch.setattr("lotts.verifiers.chat.time.sleep", waits.append)
    server.replies = [(429, "", {"Retry-After": "7"}), (429, "", {"Retry-After": "9999"}), (503, "", {}), (503, "", {})]
    judge(retries=4, backoff=0.5).score(images[:1], PROMPTS[:1])
    assert waits == [7, 60, 2, 4]


def test_silence_is_a_time_out_and_retried(server, judge, images):
    server.replies = [server.silence]
    assert judge(timeout=0.3).score(images[:1], PROMPTS[:1]).tolist() == SCORES[:1]
    server.replies = [server.silence]
    with pytest.raises(Unjudged, match=r"1 tries, the last time (TimeoutError|URLError).*timed out"):
        judge(timeout=0.3, retries=0).score(images[:1], PROMPTS[:1])


def test_nobody_there(server, judge, images):
    deaf = judge(retries=1)
    server.close()
    with pytest.raises(Unjudged, match=r"no answer in 2 tries.*refused"):
        deaf.score(images[:1], PROMPTS[:1])


@pytest.mark.parametrize("on_failure", ["raise", "lowest"])
@pytest.mark.parametrize("status", [401, 403, 404, 307])
def test_a_wrong_endpoint_is_an_error_of_its_own(server, judge, images, status, on_failure):
    server.replies = [(status, f"no good: {KEY}", {"Location": server.url + "/elsewhere"})]
    with pytest.raises(EndpointError, match=rf"{status}.*check the address, the key and the model") as caught:
        judge(on_failure=on_failure).score(images[:1], PROMPTS[:1])
    assert len(server.requests) == 1  # neither retried nor redirected
    assert KEY not in str(caught.value)
    assert "no good: ***" in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("<html>", "no chat completion"),
        ({"error": KEY}, "no chat completion"),
        ({"choices": []}, "no chat completion"),
        (completion(None, finish_reason="content_filter"), "an answer without text"),
        (completion('{"score": 1', finish_reason="length"), "cut short: allow more tokens"),
        ("x" * (1 << 20) + "y", "more than 1048576 bytes"),
    ],
)
def test_answers_of_another_form(server, judge, images, answer, message):
    server.replies = [(200, answer, {})]
    with pytest.raises(Unjudged, match=message) as caught:
        judge().score(images[:1], PROMPTS[:1])
    assert KEY not in str(caught.value)


def test_the_key_is_shown_nowhere(judge):
    one = judge()
    assert KEY not in f"{one!r} {one.version} {one.endpoint!r} {one.scale}"


def test_the_command_line_writes_scores_and_no_key(server, images, monkeypatch, tmp_path, capsys):
    for name, value in (("URL", server.url), ("MODEL", "tiny-vlm"), ("API_KEY", KEY)):
        monkeypatch.setenv(f"LOTTS_VLM_{name}", value)
    for index, image in enumerate(images[:2]):
        Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(tmp_path / f"{index}.png")
    command = ["score", str(tmp_path), "--prompt", "a cat", "--verifier", "vlm", "--out", str(tmp_path / "scores.json")]
    assert main(command) == 0
    written = (tmp_path / "scores.json").read_text()
    assert "tiny-vlm, settings " in written
    assert KEY not in written
    server.replies = [(401, f"unknown key {KEY}", {})] * 2
    assert main(command) == 2
    printed = capsys.readouterr()
    assert "<- best" in printed.out.splitlines()[2]
    assert "401" in printed.err
    assert KEY not in printed.out + printed.err


def test_the_version_tells_settings_apart(judge):
    versions = [judge(**options).version for options in ({}, {"instructions": "Score it."}, {"options": {"seed": 1}})]
    assert all(version.startswith("tiny-vlm, settings ") for version in versions)
    assert len(set(versions)) == 3
    assert judge(api_key="another").version == versions[0]


def test_the_registry_takes_it_from_the_environment(server, images, monkeypatch):
    with pytest.raises(ValueError, match="as an argument or in the environment as LOTTS_VLM_MODEL"):
        verifiers.load("vlm")
    monkeypatch.setenv("LOTTS_VLM_URL", server.url + "/chat/completions/")
    monkeypatch.setenv("LOTTS_VLM_MODEL", "tiny-vlm")
    monkeypatch.setenv("LOTTS_VLM_API_KEY", f"{KEY}\n")
    assert verifiers.score(verifiers.load("vlm"), images, PROMPTS) == SCORES
    assert verifiers.load(f"vlm={server.url}").endpoint.url == f"{server.url}/chat/completions"
    path, headers, _ = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "expected an address such as https"),
        ({"url": "ftp://127.0.0.1"}, "expected an address such as https"),
        ({"url": f"https://me:{KEY}@127.0.0.1/v1"}, "without a user, a password or a query"),
        ({"url": f"https://127.0.0.1/v1?key={KEY}"}, "without a user, a password or a query"),
        ({"api_key": "two\nlines"}, "printable ASCII"),
        ({"timeout": 0}, "timeout above 0"),
        ({"backoff": -1}, "backoff from 0 up"),
        ({"retries": -1}, "retries to be a whole number"),
        ({"max_side": 0}, "max_side"),
        ({"on_failure": "ignore"}, "raise or lowest, got 'ignore'"),
        ({"options": {"messages": [], "n": 2}}, "got messages, n"),
    ],
)
def test_arguments_are_checked_before_any_request(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        VLMJudge(**{"url": "http://127.0.0.1:9/v1", "model": "tiny-vlm"} | options)
    assert KEY not in str(caught.value)


def test_an_unencrypted_key_is_warned_about():
    with pytest.warns(UserWarning, match=r"goes to example\.com unencrypted"):
        ChatEndpoint("http://example.com/v1", KEY)


def test_wrong_pictures_cost_no_request(server, judge, images):
    with pytest.raises(ValueError, match=r"picture 4 in \[0, 1\]"):
        judge().score([*images[:4], images[4] + 1], PROMPTS)
    with pytest.raises(ValueError, match="one prompt for each of 5 images, got 4"):
        judge().score(images, PROMPTS[:4])
    assert server.requests == []
