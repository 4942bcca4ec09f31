"""The judge over HTTP, against a server on the loopback: good answers, bad ones, troubles that pass and that do not."""

import numpy as np
import pytest
import torch
from chat_server import KEY, PROMPTS, SCORES, by_brightness, completion, shown
from PIL import Image

from lotts import verifiers
from lotts.cli import main
from lotts.verifiers.base import Unjudged
from lotts.verifiers.chat import ChatFailed
from lotts.verifiers.ensemble import Ensemble, Member
from lotts.verifiers.vlm import VLMJudge, parse_score


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
    prompts = ["a cat"] * 3 + ["a dog"] * 2
    with pytest.warns(UserWarning, match=r"picture 1 \(.*no score \(HTTP 400 .*content policy\): it counts as -1"):
        scores = judge(on_failure="lowest").score(images, prompts, batch_size=1)
    assert scores.tolist() == [2, -1, 0, 4, 6]  # below the picture that was judged worst
    server.replies = [(400, "content policy", {})]
    with pytest.warns(UserWarning, match="counts as -1"):  # a search asks of one picture at a time
        assert judge(on_failure="lowest").score(images[:1], PROMPTS[:1]).tolist() == [-1]


def test_each_prompt_needs_a_judged_picture(server, judge, images):
    server.replies = [(400, "content policy", {})] * 2
    with (
        pytest.warns(UserWarning, match="counts as -1") as warned,
        pytest.raises(ValueError, match="judged none of 2 pictures of 'a cat'"),
    ):
        judge(on_failure="lowest").score(images, ["a cat"] * 2 + ["a dog"] * 3, batch_size=1)
    assert [f"picture {index}" in str(told.message) for index, told in enumerate(warned)] == [True, True]


def test_an_ensemble_takes_no_stand_ins(judge):
    strict, lenient = judge(), judge(on_failure="lowest")
    other = Member("flat", lambda images, prompts: [0.0] * len(images))
    assert Ensemble([Member("vlm", strict), other]).name == "rank(vlm:1,flat:1)"
    with pytest.raises(ValueError, match=r"vlm with on_failure='raise' in an ensemble, got 'lowest'"):
        Ensemble([Member("vlm", lenient), other])


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


def test_wrong_pictures_cost_no_request(server, judge, images):
    with pytest.raises(ValueError, match=r"picture 4 in \[0, 1\]"):
        judge().score([*images[:4], images[4] + 1], PROMPTS)
    with pytest.raises(ValueError, match="one prompt for each of 5 images, got 4"):
        judge().score(images, PROMPTS[:4])
    assert server.requests == []
