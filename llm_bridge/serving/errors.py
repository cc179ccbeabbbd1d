"""What goes wrong with a request: a status, a sentence, and the code by which programs know it, in OpenAI's form."""

from __future__ import annotations

from typing import Any

KINDS = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
}
"""OpenAI's types of errors by status; all others are of the type invalid_request_error."""


class RequestError(Exception):
    """A request that is refused.

    code: a short name, for programs. param: the part of the request that is wrong, as "messages.0.content". retry_after:
    after how many seconds the client may try again.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.retry_after = status, code, message, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
