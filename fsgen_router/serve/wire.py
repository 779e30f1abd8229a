"""What goes to the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from starlette.types import Send

from .dialect import Dialect, to_json
from .errors import ApiError


class ClientLeft(Exception):
    """Nobody is there any more to be answered. ``kind`` says how that was seen."""

    def __init__(self, kind: str = "cancelled") -> None:
        super().__init__(kind)
        self.kind = kind


class Wire:
    """What goes to the client, in time: who does not read is left."""

    def __init__(self, send: Send, seconds: float, headers: dict[str, str]) -> None:
        self._send, self._seconds, self.headers = send, seconds, headers
        self.begun = False
        self.last_words: Callable[[ApiError], Iterable[bytes]] = lambda error: ()
        """What a stream ends with that breaks."""

    async def begin(self, status: int, headers: dict[str, str]) -> None:
        self.begun = True
        lines = [
            (name.lower().encode(), value.encode("latin-1", "replace"))
            for name, value in (self.headers | headers).items()
        ]
        await self._sent({"type": "http.response.start", "status": status, "headers": lines})

    async def write(self, frames: Sequence[bytes], *, last: bool = False) -> None:
        if frames or last:
            await self._sent({"type": "http.response.body", "body": b"".join(frames), "more_body": not last})

    async def whole(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        about = {"content-type": "application/json", "content-length": str(len(body))}
        await self.begin(status, about | headers)
        await self.write([body], last=True)

    async def refuse(self, dialect: Dialect[Any], error: ApiError) -> None:
        """An error by its status, or as the last of a stream."""
        if self.begun:
            await self.write([*self.last_words(error)], last=True)
        else:
            await self.whole(error.status, to_json(dialect.error(error)), error.headers)

    async def _sent(self, message: Any) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError:
            raise ClientLeft("slow_reader") from None
        except OSError:
            raise ClientLeft from None
