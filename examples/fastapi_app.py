"""A chat server: one Router per worker process, answers streamed as plain text, 503 where too many wait.

uvicorn fastapi_app:app --workers 2        (in this folder; needs fastapi and uvicorn)

curl -N -d '{"messages": [{"role": "user", "content": "How many coins do 3 lamps and 4 ropes cost in Norvale?"}]}' \
    -H 'Content-Type: application/json' http://127.0.0.1:8000/chat
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from fsgen_router import InvalidRequest, QueueFull, Router, TextDelta


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # Here, and not when this module is imported: this runs in each worker, behind whatever fork made it.
    with Router(max_waiting=64) as router:  # fast= and slow= are your own
        app.state.router = router
        yield


app = FastAPI(lifespan=lifespan)


class Chat(BaseModel):
    messages: list[dict[str, str]]


@app.post("/chat")
async def chat(chat: Chat, request: Request) -> StreamingResponse:
    try:
        # Admitted or refused at this call, before anything is sent.
        events = request.app.state.router.astream_chat(chat.messages, max_tokens=200)
    except QueueFull as full:
        raise HTTPException(503, full.message, headers={"Retry-After": "1"}) from None
    except InvalidRequest as invalid:
        raise HTTPException(422, invalid.message) from None

    async def texts() -> AsyncIterator[str]:
        async for event in events:
            if isinstance(event, TextDelta):
                yield event.text

    return StreamingResponse(texts(), media_type="text/plain", headers={"X-Worker": str(os.getpid())})
