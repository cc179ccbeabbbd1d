"""Pictures that Label Studio serves to its backends: only those of one Label Studio, which the operator has named."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

from .errors import RequestError

SECONDS = 20.0
"""How long Label Studio may take to answer, and then between two parts of a picture."""


class LabelStudioFiles:
    """Fetches a task's picture from the Label Studio at `url`, with an access token of one of its users.

    url: None if there is none; then every address is refused. Redirects are not followed: a picture that lies in somebody
    else's storage is refused, as is any other host.
    """

    def __init__(self, url: str | None, key: str | None, most_bytes: int) -> None:
        if url is not None and urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"--label_studio is {url}, expected an address such as http://127.0.0.1:8080.")
        self.url, self.key, self.most_bytes = url, key, most_bytes

    def fetch(self, address: str, param: str) -> bytes:
        """What lies at a path or an address of that Label Studio; `RequestError` for others, and if it cannot be fetched."""
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
        return self._get(whole, param)

    def _get(self, address: str, param: str) -> bytes:
        import httpx  # which huggingface_hub needs, too

        headers = {"Authorization": f"Token {self.key}"} if self.key else {}
        data = b""
        try:
            with httpx.stream("GET", address, headers=headers, timeout=SECONDS, trust_env=False) as answer:
                if answer.status_code != 200:
                    words = f"Label Studio answered {answer.status_code} for {param}: check its access token, and its storage."
                    raise RequestError(400, "invalid_image_url", words, param=param)
                for part in answer.iter_bytes():
                    data += part
                    if len(data) > self.most_bytes:
                        words = f"The picture is larger than {self.most_bytes / 1e6:g} MB: make it smaller first."
                        raise RequestError(400, "invalid_image", words, param=param)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            words = f"Label Studio at {self.url} cannot be reached for {param} ({type(error).__name__})."
            raise RequestError(400, "invalid_image_url", words, param=param) from None
        return data
