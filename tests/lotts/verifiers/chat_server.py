"""A chat endpoint on the loopback that answers as it is told to."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

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
        self.drip = 0.0  # seconds before each byte of an answer
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
                    for byte in data if server.drip else b"":
                        server.released.wait(server.drip)
                        self.wfile.write(bytes([byte]))
                    self.wfile.write(b"" if server.drip else data)
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


PROMPTS = ["a cat", 'a sign "OPEN"', "a cat", "a dog", "a dog"]
SCORES = [2, 10, 0, 4, 6]
