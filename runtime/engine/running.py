"""One sequence on its way: its text, how much of it the cache holds, and what its next step is."""

from __future__ import annotations

from dataclasses import dataclass, field

from dsv4.runtime.engine.batch import Part
from dsv4.runtime.engine.options import Finish, Request, Result


@dataclass
class Running:
    """``text`` is prompt and new tokens; the first ``done`` of them are in the cache. ``draft``: what the MTP layer
    expects next, ``None`` before there is one."""

    number: int
    request: Request
    slot: int = -1
    text: list[int] = field(default_factory=list)
    done: int = 0
    draft: int | None = None
    drafts: int = 0
    accepted: int = 0
    finish: Finish | None = None

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt)

    @property
    def new_tokens(self) -> list[int]:
        return self.text[self.prompt_length :]

    @property
    def left(self) -> int:
        """Tokens of the text that the cache does not hold yet."""
        return len(self.text) - self.done

    @property
    def is_decoding(self) -> bool:
        return self.left == 1 and len(self.text) > self.prompt_length

    def positions(self, positions_max: int) -> int:
        """Tokens that the cache may have to hold for it."""
        return min(self.prompt_length + self.request.options.max_new_tokens, positions_max)

    def part(self, tokens: int, positions_max: int) -> Part:
        """Its share of a step that takes up to ``tokens`` of the text."""
        options = self.request.options
        if self.is_decoding and self.draft is not None and self.done + 2 <= positions_max:
            return Part(self.slot, self.done, (self.text[-1], self.draft), options, drafted=True)
        chunk = self.text[self.done : self.done + tokens]
        if len(chunk) == self.left:
            return Part(self.slot, self.done, chunk, options)
        return Part(self.slot, self.done, chunk, options, draws=False, following=self.text[self.done + tokens])

    def take(self, token: int, positions_max: int) -> bool:
        """Add a new token, or finish; whether it belongs to the text."""
        options = self.request.options
        if token in options.stop_tokens:
            self.finish = "stop"
            return False
        self.text.append(token)
        if len(self.new_tokens) == options.max_new_tokens or len(self.text) > positions_max:
            self.finish = "length"
        return True

    def result(self) -> Result:
        assert self.finish is not None
        return Result(
            tuple(self.request.prompt), tuple(self.new_tokens), self.finish, drafts=self.drafts, accepted=self.accepted
        )
