"""Pictures that Label Studio serves to its backends: only those of one Label Studio, which the operator has named.

Label Studio does not tell a backend who asks. So whoever may send tasks may have any picture described that the operator's
token opens. Nothing else is fetched with it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from threading import Event, Lock
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import httpx

from .errors import RequestError

logger = logging.getLogger(__name__)

PERSONAL_TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*")
"""A personal access token: a JSON Web Token, which is exchanged for another that is good for some minutes."""

SERVED = re.compile(r"/(data/upload|data/local-files|storage-data/uploaded|(tasks|projects)/\d+/resolve)/[^\\]*")
"""Where Label Studio serves pictures: files that were uploaded, files of its own machine, and those of a storage."""

SECONDS = 20.0
"""How long Label Studio may take to answer, and then between two parts of a picture."""


class LabelStudioFiles:
    """Fetches a task's picture from the Label Studio at `url`, with an access token of one of its users.

    url: None if there is none; then every address is refused. key: a personal access token, or a legacy one, which a Label
    Studio takes only if it was told to. Threads may share it. Only what lies where Label Studio serves pictures is asked for.
    Redirects are not followed: a picture that lies in somebody else's storage is refused, as is any other host.
    """

    def __init__(self, url: str | None, key: str | None, most_bytes: int) -> None:
        if url is not None and urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"--label_studio is {url}, expected an address such as http://127.0.0.1:8080.")
        self.url, self.key, self.most_bytes = url, key, most_bytes
        self._access: str | None = None
        self._lock = Lock()

    def fetch(self, address: str, param: str, gone: Event) -> bytes:
        """What lies at a path or an address of that Label Studio; `RequestError` for others, and if it cannot be fetched.

        gone: ends it once it is set.
        """
        if self.url is None:
            words = (
                f"{param} is {address!r:.60}: this server fetches pictures only if it was started with --label_studio."
            )
            raise RequestError(400, "invalid_image_url", words, param=param)
        try:
            whole = urljoin(self.url, address)
            parts, own = urlsplit(whole), urlsplit(self.url)
            is_own = (parts.scheme, parts.netloc) == (own.scheme, own.netloc)
        except ValueError:
            is_own = False
        if not is_own:
            words = (
                f"{param} is {address!r:.60}, which does not lie on {self.url}: this server fetches from there alone."
            )
            raise RequestError(400, "invalid_image_url", words, param=param)
        if not _is_served(parts.path, own.path):
            words = (
                f"{param} is {address!r:.60}, where Label Studio serves no pictures: expected /data/upload/…, "
                "/data/local-files/…, or /tasks/…/resolve/…, as it writes them into tasks."
            )
            raise RequestError(400, "invalid_image_url", words, param=param)
        try:
            status, data = self._get(whole, param, self._shown(), gone)
            if status == 401 and self._is_personal:
                status, data = self._get(whole, param, self._shown(anew=True), gone)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            words = f"Label Studio at {self.url} cannot be reached for {param} ({type(error).__name__})."
            raise RequestError(400, "invalid_image_url", words, param=param) from None
        if status != 200:
            words = f"Label Studio answered {status} for {param}: check its access token, and its storage."
            raise RequestError(400, "invalid_image_url", words, param=param)
        return data

    def _get(self, address: str, param: str, headers: Mapping[str, str], gone: Event) -> tuple[int, bytes]:
        """A status, and what lies at an address if it is 200."""
        data = b""
        with httpx.stream("GET", address, headers=headers, timeout=SECONDS, trust_env=False) as answer:
            for part in answer.iter_bytes() if answer.status_code == 200 else ():
                data += part
                if gone.is_set():
                    raise RequestError(499, "client_left", "Nobody waits for the picture any more.")
                if len(data) > self.most_bytes:
                    words = f"The picture is larger than {self.most_bytes / 1e6:g} MB: make it smaller first."
                    raise RequestError(400, "invalid_image", words, param=param)
            return answer.status_code, data

    @property
    def _is_personal(self) -> bool:
        return self.key is not None and PERSONAL_TOKEN.fullmatch(self.key) is not None

    def _shown(self, *, anew: bool = False) -> dict[str, str]:
        """The headers by which Label Studio knows the user. anew: the access token that was shown has expired."""
        if not self._is_personal:
            return {"Authorization": f"Token {self.key}"} if self.key else {}
        with self._lock:
            if self._access is None or anew:
                self._access = self._exchanged()
            return {"Authorization": f"Bearer {self._access}"}

    def _exchanged(self) -> str:
        """A new access token for the personal one."""
        address = urljoin(str(self.url), "/api/token/refresh")
        answer = httpx.post(address, json={"refresh": self.key}, timeout=SECONDS, trust_env=False)
        try:
            values: Any = answer.json()
        except ValueError:
            values = None
        access = values.get("access") if isinstance(values, dict) else None
        if answer.status_code != 200 or not isinstance(access, str) or not access.isascii():
            logger.error(
                "Label Studio at %s refuses the access token (%d): give a new one.", self.url, answer.status_code
            )
            words = "Label Studio refuses this server's access token; the log of this server says why."
            raise RequestError(502, "upstream_error", words)
        return access


def _is_served(path: str, own: str) -> bool:
    """Whether pictures are served at a path of a Label Studio whose own address has the path `own`; dots lead nowhere else."""
    read = unquote(path)
    if any(part in (".", "..") for text in (read, unquote(read)) for part in re.split(r"[/\\]", text)):
        return False
    beginning = own.rstrip("/")
    return SERVED.fullmatch(read) is not None or (
        read.startswith(f"{beginning}/") and SERVED.fullmatch(read.removeprefix(beginning)) is not None
    )
