"""LangChain without a server: a chat model over a Router in this process, which streams and says who wrote a token.

python examples/frameworks/langchain_model.py
"""

from collections.abc import Iterator
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.utils import convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict

from fsgen_router import Finished, Generation, Message, Router, TextDelta


class ChatRouter(BaseChatModel):
    """A Router as a chat model of LangChain; the Router stays its maker's to close."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    router: Router

    @property
    def _llm_type(self) -> str:
        return "fsgen-router"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> ChatResult:
        answer = self.router.chat(turns(messages), stop=stop or (), **options)
        message = AIMessage(answer.text, usage_metadata=usage(answer), response_metadata=about(answer))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for event in self.router.stream_chat(turns(messages), stop=stop or (), **options):
            match event:
                case TextDelta(text=text, token=token):
                    chunk = AIMessageChunk(text, additional_kwargs={"source": token.source} if token else {})
                case Finished(generation=answer):
                    chunk = AIMessageChunk("", usage_metadata=usage(answer), response_metadata=about(answer))
                case _:
                    continue
            made = ChatGenerationChunk(message=chunk)
            if run_manager is not None:
                run_manager.on_llm_new_token(str(chunk.content), chunk=made)
            yield made


def turns(messages: list[BaseMessage]) -> list[Message]:
    made: list[Message] = convert_to_openai_messages(messages)
    return made


def usage(answer: Generation) -> UsageMetadata:
    read, wrote = answer.usage.prompt_tokens, answer.usage.tokens
    return UsageMetadata(input_tokens=read, output_tokens=wrote, total_tokens=read + wrote)


def about(answer: Generation) -> dict[str, Any]:
    return {"finish_reason": answer.finish_reason, "policy": answer.policy, "slow_forwards": answer.usage.slow_forwards}


def main() -> None:
    with Router(policy="entropy>0.8") as router:
        model = ChatRouter(router=router)
        whole = None
        for chunk in model.stream("How many coins do 3 lamps and 4 ropes cost in Norvale?"):
            print(end=chunk.content)
            whole = chunk if whole is None else whole + chunk
        print(
            f"\n{whole.usage_metadata['output_tokens']} tokens, {whole.response_metadata['slow_forwards']} slow steps"
        )
        questions = [f"How many coins do {count} lamps and 4 ropes cost in Norvale?" for count in (2, 4, 5)]
        for answer in model.batch(questions):  # at once: they share their forwards
            print(answer.content[-10:])


if __name__ == "__main__":
    main()
