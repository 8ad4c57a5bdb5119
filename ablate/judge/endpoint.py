"""A judge behind an OpenAI-compatible endpoint: POST BASE_URL/chat/completions; no torch.

The key comes from an environment variable, goes into the header of the requests and nowhere else:
not into the name, the identity, a reply or a message. Redirects are not followed, for they would
take the key along.
"""

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any

from ablate.errors import UserError
from ablate.judge.asked import Question, Reply, filled

KEY = "OPENAI_API_KEY"  # the environment variable with the key, unless another is named
PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # statuses that may be others next time
LARGEST = 2**22  # bytes of an answer that are read
KEPT = 20_000  # characters of a reply that are kept, the last ones, where the verdict stands
UNREACHABLE = 8  # questions on end without a reply, after which no other is asked
SECRET = 8  # characters from which on a key is one; shorter ones are words for servers without keys
UNASKED = f"not asked: {UNREACHABLE} questions before it got no reply"
LONGEST_WAIT = 60.0  # seconds before another try, whatever the server asks for


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaching:
    """How an endpoint is reached; nothing of it changes a reply."""

    key_env: str = KEY
    timeout: float = 120.0  # seconds
    tries: int = 6
    wait: float = 1.0  # seconds before the second try, doubled for every further one
    parallel: int = 4  # requests at once


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class EndpointJudge:
    """A model that a server runs, asked at temperature 0."""

    def __init__(
        self,
        base_url: str,
        model: str,
        form: str,
        *,
        max_tokens: int = 16,
        reaching: Reaching | None = None,
    ) -> None:
        """Take the address up to /v1, the server's name of the model and the wording.

        Raises:
            UserError: the address is none of http or https, or holds a name or a password; the key
                has characters that a header cannot hold.
        """
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--base-url={base_url}: must begin with http:// or https://")
        if parts.username or parts.password or parts.query:
            raise UserError("--base-url: must hold no name, password or query; a key comes from "
                            "an environment variable (--key-env)")  # fmt: skip
        self.name, self._url, self._form = model, base_url.rstrip("/"), form
        self._max_tokens, self._reaching = max_tokens, reaching or Reaching()
        self._open = urllib.request.build_opener(_NoRedirect).open
        if not re.fullmatch(r"[!-~]*", self._key):  # else the message of an error would hold it
            raise UserError(
                f"--base-url={base_url}: the key in the environment variable "
                f"{self._reaching.key_env} has a space, a line end or a letter beyond ASCII in it"
            )

    @property
    def identity(self) -> Mapping[str, Any]:
        """Address, model, wording and limit."""
        return {"kind": "endpoint", "base_url": self._url, "model": self.name,
                "prompt": self._form, "max_tokens": self._max_tokens}  # fmt: skip

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """Yield replies as they come; one that did not come after all tries has an `error`.

        After `UNREACHABLE` questions on end without a reply the rest are not asked.

        Raises:
            UserError: the server refuses such requests, so that no other need be sent.
        """
        with ThreadPoolExecutor(self._reaching.parallel) as pool:
            waiting = {pool.submit(self._reply, q): n for n, q in enumerate(questions)}
            lost = 0  # on end
            try:
                for done in as_completed(waiting):
                    reply = Reply(None, UNASKED) if done.cancelled() else done.result()
                    lost = lost + 1 if reply.text is None else 0
                    if lost == UNREACHABLE:
                        for one in waiting:
                            one.cancel()
                    yield waiting[done], reply
            finally:
                for one in waiting:
                    one.cancel()

    def _reply(self, question: Question) -> Reply:
        error = ""
        for attempt in range(self._reaching.tries):
            if attempt:
                time.sleep(min(self._pause(attempt, error), LONGEST_WAIT))
            try:
                reply = _read(self._post(question))
                return replace(reply, text=self._clean(reply.text or "")[-KEPT:])
            except urllib.error.HTTPError as fault:
                with fault:  # closes the connection
                    error = f"HTTP {fault.code}"
                    if fault.code not in PASSING:
                        raise UserError(
                            f"--base-url={self._url}: the server refuses the request ({error}: "
                            f"{self._told(fault)})"
                        ) from None
                    error += f" {fault.headers.get('Retry-After', '')}".rstrip()
            except (OSError, http.client.HTTPException, ValueError) as fault:
                error = f"{type(fault).__name__}: {fault}"
        return Reply(None, f"{self._clean(error)}, after {self._reaching.tries} tries")

    def _pause(self, attempt: int, error: str) -> float:
        """Return the seconds to wait: as many as the server asks for, at least the doubled ones."""
        own = self._reaching.wait * 2 ** (attempt - 1)
        asked = re.fullmatch(r"HTTP \d+ (\d{1,6})", error)
        return max(own, float(asked[1])) if asked else own

    def _post(self, question: Question) -> bytes:
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": filled(self._form, question)}],
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(
            f"{self._url}/chat/completions", json.dumps(body).encode(), headers
        )
        with self._open(request, timeout=self._reaching.timeout) as answer:
            return _whole(answer, time.monotonic() + self._reaching.timeout)

    @property
    def _key(self) -> str:
        return os.environ.get(self._reaching.key_env, "").strip()

    def _told(self, fault: urllib.error.HTTPError) -> str:
        """Return the beginning of what a server says about an error."""
        try:
            content = _whole(fault, time.monotonic() + self._reaching.timeout)
            text = content.decode(errors="replace")
        except (OSError, http.client.HTTPException, ValueError):
            text = str(fault.reason)
        return self._clean(" ".join(text.split()))[:200]  # cut last: half a key is no key to find

    def _clean(self, text: str) -> str:
        """Return a text without the key, which a server may have said back."""
        key = self._key
        if len(key) < SECRET:
            return text
        for form in (key, json.dumps(key)[1:-1], key.replace("/", "\\/")):  # as JSON may have it
            text = text.replace(form, "***")
        return text


def _whole(answer: Any, deadline: float) -> bytes:
    """Return the body of an answer.

    Raises:
        TimeoutError: it is not there at `deadline`, though a little of it may come all the time.
        ValueError: it is larger than `LARGEST`, or shorter than its header says.
    """
    stated = answer.headers.get("Content-Length", "")
    length = int(stated) if re.fullmatch(r"[0-9]{1,18}", stated) else None
    content = bytearray()
    while (length is None or len(content) < length) and (part := answer.read1(2**16)):
        content += part
        if len(content) > LARGEST:
            raise ValueError(f"the answer is larger than {LARGEST >> 20} MB")
        if time.monotonic() > deadline:
            raise TimeoutError("the answer did not end in time")
    if length is not None and len(content) < length:
        raise ValueError(f"the answer ended after {len(content):,} of {length:,} bytes")
    return bytes(content)


def _read(content: bytes) -> Reply:
    """Return the reply in a server's answer.

    Raises:
        ValueError: it is none of a chat completion.
    """
    try:
        found = json.loads(content)
    except RecursionError:
        raise ValueError("the answer is nested too deeply") from None
    try:
        said, used = found["choices"][0]["message"]["content"], found.get("usage")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("the answer is no chat completion") from None
    if said is not None and not isinstance(said, str):
        raise ValueError("the answer is no chat completion")
    counts = ("prompt_tokens", "completion_tokens")
    usage = {k: used[k] for k in counts if isinstance(used, dict) and isinstance(used.get(k), int)}
    return Reply(said or "", extra=usage)
