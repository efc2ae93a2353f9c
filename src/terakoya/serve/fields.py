"""What a request may say: every field is here with its range, and any other is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

MOST_CHOICES, MOST_LOGPROBS, MOST_STOPS, LONGEST_STOP, MOST_BIASES, MOST_PROMPTS = 8, 20, 8, 64, 1024, 128
Text = Annotated[str, Field(max_length=LONGEST_STOP, min_length=1)]
Id = Annotated[int, Field(ge=0, lt=2**31)]


def _no(given: bool) -> bool:
    if given:
        raise ValueError("cannot be done here; only false")
    return given


No = Annotated[bool, AfterValidator(_no), Field(json_schema_extra={"const": False})]  # Literal[False] would take 0


class Strict(BaseModel):
    """No field that is not here, no text for a number, no number that is none."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class StreamOptions(Strict):
    include_usage: bool | None = None


class PlainText(Strict):
    type: Literal["text"]


class JsonObject(Strict):
    type: Literal["json_object"]


class NamedSchema(Strict):
    name: str | None = Field(None, max_length=256)
    description: str | None = Field(None, max_length=16_384)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchema(Strict):
    type: Literal["json_schema"]
    json_schema: NamedSchema


class Regex(Strict):
    type: Literal["regex"]
    pattern: str


class Lark(Strict):
    type: Literal["grammar"]
    grammar: str


class Choice(Strict):
    type: Literal["choice"]
    choices: list[str] = Field(min_length=1)


Format = Annotated[PlainText | JsonObject | JsonSchema | Regex | Lark | Choice, Field(discriminator="type")]


class Drawing(Strict):
    """How tokens are chosen. Defaults are OpenAI's: the model's own distribution."""

    model: str | None = Field(None, max_length=200, description="a name of /v1/models; the first where it is missing")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    max_tokens: int | None = Field(None, ge=0, le=1 << 24)
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1 << 24, description="0 or -1: all")
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = Field(None, max_length=MOST_BIASES, description="-100 to 100 by token id")
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: Text | list[Text] | None = Field(None, description="ends the answer; is not in it")
    stop_token_ids: list[Id] | None = Field(None, max_length=64)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0, le=1 << 24)
    user: str | None = Field(None, max_length=512, description="cached prompts are not shared between users")
    response_format: Format | None = None
    prompt_cache_key: str | None = Field(None, max_length=512, description="keeps cached prompts apart, like user")

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if isinstance(stop, list) and len(stop) > MOST_STOPS:
            raise ValueError(f"at most {MOST_STOPS} texts")
        return stop

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        for key, value in (bias or {}).items():
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise ValueError("the keys must be token ids")
            if abs(value) > 100:
                raise ValueError("the values must be -100 to 100")
        return bias

    @model_validator(mode="after")
    def _streams(self) -> Drawing:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=true")
        return self


class TextPart(Strict):
    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    name: str = Field(max_length=256)
    arguments: str


class ToolCall(Strict):
    id: str | None = Field(None, max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # as streams have it


class Message(Strict):
    """Who said what. A last message of the assistant is continued."""

    role: str = Field(max_length=64)
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = Field(None, max_length=128)
    tool_call_id: str | None = Field(None, max_length=256)
    reasoning_content: str | None = Field(None, description="shown to the model again only if its template does so")
    # What our own answers have, and clients send back.
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = Field(None, max_length=0)

    @model_validator(mode="after")
    def _says(self) -> Message:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls are the assistant's")
        return self

    @property
    def text(self) -> str:
        """The words, parts joined."""
        if self.content is None:
            return ""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Function(Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = Field(None, max_length=16_384)
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class ChatRequest(Drawing):
    """POST /v1/chat/completions"""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 24)
    max_tokens: int | None = Field(None, ge=1, le=1 << 24)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    chat_template: str | None = Field(None, max_length=64, description="the name of a template that Terakoya knows")
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: one call at most")
    # Fields with one value that changes nothing; any other is refused.
    store: No | None = None
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    metadata: dict[str, str] | None = Field(None, max_length=0)

    @model_validator(mode="after")
    def _agree(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens disagree")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("tools: two have the same name")
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise ValueError("tool_choice needs tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError("tool_choice names none of the tools")
        if names and self.tool_choice != "none" and self.response_format not in (None, PlainText(type="text")):
            raise ValueError("response_format and tools contradict each other; set tool_choice to none")
        return self


class CompletionRequest(Drawing):
    """POST /v1/completions"""

    prompt: str | list[str] | list[Id] | list[list[Id]]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    best_of: int | None = Field(None, ge=1, le=MOST_CHOICES)
    suffix: Literal[""] | None = None
    add_special_tokens: bool | None = Field(None, description="the begin token before a text; default true")

    @field_validator("prompt")
    @classmethod
    def _some(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and not prompt:
            raise ValueError("an empty list has nothing to continue")
        if isinstance(prompt, list) and not isinstance(prompt[0], int) and len(prompt) > MOST_PROMPTS:
            raise ValueError(f"at most {MOST_PROMPTS} prompts")
        return prompt

    @model_validator(mode="after")
    def _agree(self) -> CompletionRequest:
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of must be n: there is no choosing among hidden answers here")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens=0 leaves nothing to answer, except with echo")
        return self


class TokenizeRequest(Strict):
    model: str | None = Field(None, max_length=200)
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=4096)
    add_special_tokens: bool | None = None
    with_pieces: bool | None = Field(None, description="also the text of each token, or its bytes where it is none")

    @model_validator(mode="after")
    def _one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages")
        return self


class DetokenizeRequest(Strict):
    model: str | None = Field(None, max_length=200)
    tokens: list[Id]


class TemplateRequest(Strict):
    model: str | None = Field(None, max_length=200)
    messages: list[Message] = Field(min_length=1, max_length=4096)
    chat_template: str | None = Field(None, max_length=64)
