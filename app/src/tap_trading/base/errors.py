"""Failures that a person can act on: what happened, and what to do about it."""


class StartupError(Exception):
    """The process cannot start; the text is the one sentence its log will carry."""


class ProblemError(Exception):
    """An answer other than success, in the terms of RFC 9457.

    `code` is stable and part of the API contract; `detail` is a sentence for people.
    """

    def __init__(
        self, status: int, code: str, detail: str, *, retry_after_s: int | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s
