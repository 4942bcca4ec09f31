"""One question to an OpenAI-compatible chat endpoint: a POST with a time limit, retries and no redirects."""

from __future__ import annotations

import email.message
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Mapping
from typing import Any

RETRIED = (408, 425, 429, 500, 502, 503, 504, 529)  # passing troubles, by their HTTP status
USELESS = (301, 302, 303, 307, 308, 401, 403, 404, 405)  # no question will be answered here
_LARGEST_ANSWER = 1 << 20  # bytes
_LONGEST_WAIT = 60.0  # seconds
_PATH = "/chat/completions"


class ChatFailed(Exception):
    """One question got no answer; the text says why."""


class EndpointError(OSError):
    """The endpoint as such is of no use: wrong address, wrong key, or no permission."""


class ChatEndpoint:
    """Where questions go.

    Args:
        url: the base address, such as "https://api.example.com/v1", with or without "/chat/completions".
        api_key: sent as a bearer token, to this address alone: redirects are not followed. None: no key is sent.
        timeout: seconds that a connection may stay silent, and seconds that an answer may take to arrive.
        retries: further tries after a time-out, a lost connection, or one of the statuses ``RETRIED``.
        backoff: seconds before the first retry, twice as many before each next one, at most 60. A Retry-After header in
            seconds takes precedence.

    Raises:
        ValueError: an argument is not as said.
    """

    def __init__(
        self, url: str, api_key: str | None = None, timeout: float = 60.0, retries: int = 3, backoff: float = 1.0
    ) -> None:
        self.url = _checked_url(url)
        if not timeout > 0 or not backoff >= 0:
            raise ValueError(
                f"expected timeout above 0 and backoff from 0 up, in seconds, got {timeout!r}, {backoff!r}"
            )
        if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
            raise ValueError(f"expected retries to be a whole number from 0 up, got {retries!r}")
        api_key = None if api_key is None else api_key.strip()
        if api_key is not None and not (api_key and api_key.isascii() and api_key.isprintable()):
            raise ValueError("expected the API key as printable ASCII text on one line, got something else")
        host = urllib.parse.urlsplit(self.url).hostname
        if api_key and self.url.startswith("http:") and host not in ("localhost", "127.0.0.1", "::1"):
            warnings.warn(f"the API key goes to {host} unencrypted: use https", stacklevel=3)
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self._key = api_key
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ask(self, body: Mapping[str, Any]) -> str:
        """The text of the first choice that the endpoint answers ``body`` with. Safe to call from many threads.

        Raises:
            ChatFailed: no answer after all retries, an answer of another form, or the question was refused.
            EndpointError: one of the statuses ``USELESS``.
        """
        data = json.dumps(body).encode()
        wait = self.backoff
        for tries_left in range(self.retries, -1, -1):
            try:
                return _content(self._post(data))
            except ChatFailed as failure:
                raise ChatFailed(self._hidden(str(failure))) from None
            except urllib.error.HTTPError as error:
                reason, asked = self._reason(error), _retry_after(error.headers)
                if error.code in USELESS:
                    raise EndpointError(
                        f"{self.url} answered {reason}: check the address, the key and the model"
                    ) from None
                if error.code not in RETRIED:
                    raise ChatFailed(f"HTTP {reason}") from None
                reason = f"HTTP {reason}"
            except (OSError, http.client.HTTPException) as error:
                reason, asked = self._hidden(f"{type(error).__name__}: {error}"), None
            if tries_left:
                time.sleep(min(_LONGEST_WAIT, wait if asked is None else asked))
                wait *= 2
        raise ChatFailed(f"no answer in {self.retries + 1} tries, the last time {reason}")

    def _post(self, data: bytes) -> bytes:
        request = urllib.request.Request(self.url, data, {"Content-Type": "application/json"}, method="POST")
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        deadline = time.monotonic() + self.timeout
        with self._opener.open(request, timeout=self.timeout) as response:
            parts, size = [], 0
            while part := response.read1(1 << 16):
                parts.append(part)
                size += len(part)
                if size > _LARGEST_ANSWER:
                    raise ChatFailed(f"an answer of more than {_LARGEST_ANSWER} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the answer took more than {self.timeout} s")
            announced = response.headers.get("Content-Length") or ""
            if announced.isdigit() and size < int(announced):
                raise ConnectionError(f"the answer broke off after {size} of {announced} bytes")
            return b"".join(parts)

    def _reason(self, error: urllib.error.HTTPError) -> str:
        """Status and the start of what the server says of it."""
        with error:
            try:
                said = error.read(2000).decode("utf-8", "replace")
            except (OSError, http.client.HTTPException):
                said = ""
        return self._hidden(f"{error.code} {error.reason}: {' '.join(said.split())}")[:300]

    def _hidden(self, text: str) -> str:
        """``text`` without the key: servers repeat it in their complaints."""
        return text.replace(self._key, "***") if self._key else text


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect becomes an error: it would carry pictures, prompts and the key to an address that nobody named."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _checked_url(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected an address such as https://api.example.com/v1, got {url!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("expected an address without a user, a password or a query: the key is an argument of its own")
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith(_PATH) else path + _PATH).geturl()


def _content(answer: bytes) -> str:
    try:
        choice = json.loads(answer)["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise ChatFailed(f"an answer that is no chat completion: {answer[:200]!r}") from None
    if choice.get("finish_reason") == "length":
        raise ChatFailed("an answer cut short: allow more tokens")
    if not isinstance(content, str):
        raise ChatFailed(f"an answer without text: {str(choice['message'])[:200]}")
    return content


def _retry_after(headers: email.message.Message) -> float | None:
    value = (headers.get("Retry-After") or "").strip()
    return float(value) if value.isascii() and value.isdigit() else None
