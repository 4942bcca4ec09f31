"""Troubles on the way to a chat endpoint: those that pass are retried, the others told, and the key never is."""

import json

import pytest
from chat_server import KEY, PROMPTS, SCORES, completion

from lotts.verifiers.base import Unjudged
from lotts.verifiers.chat import ChatEndpoint, EndpointError


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


def test_an_answer_that_breaks_off_is_retried(server, judge, images):
    whole = json.dumps(completion('{"score": 3}'))
    server.replies = [(200, whole[:20], {"Content-Length": str(len(whole)), "Connection": "close"})]
    assert judge().score(images[:1], PROMPTS[:1]).tolist() == SCORES[:1]
    assert len(server.requests) == 2


def test_an_answer_that_drips_is_a_time_out(server, judge, images):
    server.drip = 0.1
    with pytest.raises(Unjudged, match=r"1 tries, the last time TimeoutError: the answer took more than 0\.5 s"):
        judge(timeout=0.5, retries=0).score(images[:1], PROMPTS[:1])


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


def test_an_unencrypted_key_is_warned_about():
    with pytest.warns(UserWarning, match=r"goes to example\.com unencrypted"):
        ChatEndpoint("http://example.com/v1", KEY)
