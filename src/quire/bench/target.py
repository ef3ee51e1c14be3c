"""Which server, which model, and the bodies that requests carry."""

from __future__ import annotations

import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from quire.bench.datasets import Sample
from quire.bench.exchange import error_text
from quire.bench.load import Target
from quire.bench.options import SamplingOptions, TargetOptions, json_object, pairs
from quire.errors import ConfigError, UnavailableError

ENDPOINTS = {
    "openai": "/v1/completions",
    "vllm": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
}
RETRY_SECONDS = 1.0
_SAMPLING = ("top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")


def make_target(options: TargetOptions) -> Target:
    """Where requests go.

    Raises:
        ConfigError: options that contradict, or no URL.
    """
    scheme, host, port, prefix = _address(options)
    endpoint = options.endpoint or ENDPOINTS[options.backend]
    if not endpoint.startswith("/"):
        raise ConfigError(f"--endpoint {endpoint!r} must begin with '/', as {ENDPOINTS[options.backend]} does.")
    if is_chat(options) != endpoint.rstrip("/").endswith("/chat/completions"):
        wanted = "/chat/completions" if is_chat(options) else "/completions"
        raise ConfigError(f"--endpoint {endpoint!r} does not fit --backend {options.backend}: it must end in {wanted}.")
    if prefix.endswith("/v1") and endpoint.startswith("/v1/"):
        prefix = prefix[: -len("/v1")]
    return Target(host, port, scheme == "https", prefix + endpoint, _header_lines(options))


def is_chat(options: TargetOptions) -> bool:
    """Whether requests hold messages instead of a prompt."""
    return options.backend == "openai-chat"


def _address(options: TargetOptions) -> tuple[str, str, int, str]:
    """(scheme, host, port, path before the endpoint)"""
    if options.base_url is None:
        return "http", options.host or "127.0.0.1", options.port or 8000, ""
    for flag, value in (("--host", options.host), ("--port", options.port)):
        if value is not None:
            raise ConfigError(f"--base-url {options.base_url!r} and {flag} {value} both name the server: give one.")
    parts = urlsplit(options.base_url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.query or parts.fragment:
        raise ConfigError(f"--base-url {options.base_url!r}: a URL such as http://localhost:8000 is needed.")
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), parts.path.rstrip("/")


def _headers(options: TargetOptions) -> dict[str, str]:
    headers = pairs(options.header, "--header")
    key = options.api_key or os.environ.get("OPENAI_API_KEY")
    if key:
        headers = {"authorization": f"Bearer {key}", **headers}
    for name, value in headers.items():
        if not (name + value).isprintable() or not (name + value).isascii() or ":" in name or " " in name:
            raise ConfigError(f"--header or --api-key: {name!r} cannot be sent; printable ASCII is needed.")
    return headers


def _header_lines(options: TargetOptions) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in _headers(options).items()).encode("ascii")


# ---------------------------------------------------------------------------------------------------------------
# is it there, and what does it serve


def find_model(options: TargetOptions, tell: Callable[[str], None]) -> str:
    """Wait until the server answers; the model's name for requests: as given, else the first one it lists.

    Args:
        options: the server.
        tell: is told once that it must be waited for.

    Raises:
        UnavailableError: it did not answer in time.
        ConfigError: it answered, and refuses or lists no model.
    """
    given = options.served_model_name or options.model
    scheme, host, port, prefix = _address(options)
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{prefix.removesuffix('/v1')}/v1/models"
    status, body = _wait(url, _headers(options), options.ready_check_timeout_sec, tell)
    if status in (401, 403):
        raise ConfigError(f"{url} answers HTTP {status}: {error_text(body)} See --api-key.")
    if given is not None:
        return given
    try:
        return str(msgspec.json.decode(body)["data"][0]["id"])
    except (msgspec.DecodeError, LookupError, TypeError):
        raise ConfigError(f"{url} answers HTTP {status} and lists no model: name one with --model.") from None


def _wait(url: str, headers: dict[str, str], seconds: float, tell: Callable[[str], None]) -> tuple[int, bytes]:
    """(status, body) of the first answer that is not 503."""
    limit = time.monotonic() + seconds
    told = False
    while True:
        try:
            status, body = _get(url, headers)
            reason = f"HTTP {status}: {error_text(body)}"
            if status != 503:
                return status, body
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", None) or error
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise ConfigError(f"{url}: {cause.verify_message}; SSL_CERT_FILE names further certificates.") from None
            reason = str(cause)
        if time.monotonic() >= limit:
            raise UnavailableError(
                f"No server is ready at {url} after {seconds:g} s ({reason}); see --base-url, --host, --port and"
                " --ready-check-timeout-sec."
            )
        if not told:
            tell(f"Waiting up to {seconds:g} s for {url} ({reason}).")
            told = True
        time.sleep(min(RETRY_SECONDS, max(0.0, limit - time.monotonic())))


def _get(url: str, headers: dict[str, str]) -> tuple[int, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers=headers)
    try:
        with opener.open(request, timeout=10) as answer:
            return answer.status, answer.read(1 << 20)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(1 << 16)


# ---------------------------------------------------------------------------------------------------------------
# bodies


class BodyMaker:
    """Turns samples into JSON bodies.

    Args:
        chat: messages instead of a prompt.
        model: name in the request.
        sampling: what each request asks for.

    Raises:
        ConfigError: --extra-body is no JSON object.
    """

    def __init__(self, *, chat: bool, model: str, sampling: SamplingOptions) -> None:
        self._chat = chat
        self._common = {"model": model, **_common(sampling, chat), **json_object(sampling.extra_body, "--extra-body")}

    def body(self, sample: Sample) -> bytes:
        """The body of a request.

        Raises:
            ConfigError: a prompt that this API does not take.
        """
        length = {"max_completion_tokens" if self._chat else "max_tokens": sample.output_len}
        return msgspec.json.encode({**self._prompt(sample), **length, **self._common})

    def _prompt(self, sample: Sample) -> dict[str, Any]:
        prompt = sample.prompt
        messages = isinstance(prompt, list) and isinstance(prompt[0], dict)
        if not self._chat:
            if messages:
                raise ConfigError("The dataset holds messages, which need --backend openai-chat.")
            return {"prompt": prompt}
        if messages:
            return {"messages": prompt}
        if not isinstance(prompt, str):
            raise ConfigError("The dataset holds token ids, which --backend openai-chat cannot send: use openai.")
        return {"messages": [{"role": "user", "content": prompt}]}


def _common(sampling: SamplingOptions, chat: bool) -> dict[str, Any]:
    """Fields that all requests share."""
    fields: dict[str, Any] = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
    }
    for name in _SAMPLING:
        if (value := getattr(sampling, name)) is not None:
            fields[name] = value
    if sampling.ignore_eos:
        fields["ignore_eos"] = True
    if sampling.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": sampling.logprobs} if chat else {"logprobs": sampling.logprobs}
    return fields
