"""Which providers there are, where they live, and how their dialect of OpenAI's API differs from OpenAI's own.

A provider in the table below is spoken to directly (openai_wire.py); every other one of NAMES through LiteLLM. The
dialects are what LiteLLM does for the same provider, or what the provider's documentation says where LiteLLM drops
more than it must; a test lays the bodies that both send side by side.
"""

import os
import re
from typing import Any, Final

import msgspec

from infra.llm.shapes import OPTIONS, Target, text_of, words

# LiteLLM's own list (litellm.provider_list, and the providers it reads from a JSON file), so that a name can be
# checked without importing it. A test compares.
NAMES: Final = words(
    """
    a2a a2a_agent abliteration ai21 ai21_chat aihubmix aiml aiohttp_openai amazon_nova anthropic anthropic_text
    apertis assemblyai auto_router aws_polly aws_textract azure azure_ai azure_speech azure_text baseten bedrock
    bedrock_mantle black_forest_labs bytez cerebras charity_engine chatgpt chutes clarifai cloudflare codestral
    cognition cohere cohere_chat cometapi compactifai cortecs crusoe cursor custom custom_openai darkbloom dashscope
    databricks datarobot deepgram deepinfra deepseek docker_model_runner dotprompt edenai elevenlabs empiriolabs
    empower fal_ai featherless_ai fireworks_ai friendliai galadriel gdc gemini gigachat github github_copilot gmi
    gradient_ai groq helicone heroku hosted_vllm huggingface humanloop hyperbolic inception infinity jina_ai
    lambda_ai langflow langfuse langgraph lemonade libertai litellm_agent litellm_proxy llamafile llamagate lm_studio
    manus maritalk meta meta_llama milvus minimax mistral modelscope mongodb moonshot morph nadir nano-gpt nebius
    neosantara nlp_cloud novita nscale nvidia_nim nvidia_riva oci ollama ollama_chat oobabooga openai openai_like
    openrouter ovhcloud parasail perplexity petals pg_vector pinstripes poe predibase prism publicai qwen_ai_platform
    qwencloud ragflow recraft reducto reka replicate runwayml s3_vectors sagemaker sagemaker_chat sagemaker_nova sail
    sambanova sap sarvam scaleway scx-ai snowflake soniox stability strands_decider synthetic tencent tensormesh
    text-completion-codestral text-completion-inception text-completion-openai together_ai topaz transcribe triton
    typesafe v0 valkey veniceai vercel_ai_gateway vertex_ai vertex_ai_beta vllm volcengine voyage wandb watsonx
    watsonx_text xai xiaomi_mimo xinference zai
    """
)
DEMO: Final = "demo"
"""The provider that is built in: demo/echo."""

_SYNONYMS: Final = {"fireworks": "fireworks_ai"}


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """What to change in a request, for this provider to take it.

    Args:
        drops: options that it answers with an error.
        renames: options that it calls something else.
        flat_text: it wants message content as a string where the parts are all text.
        drops_names: it refuses `name` in messages.
        reports_usage_unasked: it sends usage with a stream anyway and refuses `stream_options`.
        model_prefix: what its model names begin with, if the name given is a short one.
        extras: options that it needs to be told.
    """

    drops: frozenset[str] = frozenset()
    renames: dict[str, str] = {}
    flat_text: bool = False
    drops_names: bool = False
    reports_usage_unasked: bool = False
    model_prefix: str = ""
    extras: dict[str, Any] = {}

    def body(self, target: Target, messages: list[dict[str, Any]], options: dict[str, Any]) -> dict[str, Any]:
        """The request in this dialect."""
        if self.flat_text or self.drops_names:
            messages = [self._message(message) for message in messages]
        taken = (OPTIONS & options.keys()) - self.drops
        chosen = {self.renames.get(name, name): options[name] for name in taken}
        return {"model": self._model(target.model), "messages": messages} | chosen | self.extras

    def _model(self, name: str) -> str:
        return name if "/" in name or "#" in name else self.model_prefix + name

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        if isinstance(content, list) and all(part.get("type") == "text" for part in content):
            message = message | {"content": text_of(content)}
        if self.drops_names and message.get("role") != "tool":
            message = {key: value for key, value in message.items() if key != "name"}
        return message


PLAIN: Final = Dialect()
_NO_REASONING: Final = Dialect(drops=words("reasoning_effort"))
_NO_SAMPLING: Final = words(
    "temperature top_p stop frequency_penalty presence_penalty logit_bias logprobs top_logprobs"
)
_GPT_5: Final = Dialect(drops=_NO_SAMPLING, renames={"max_tokens": "max_completion_tokens"})
_O_SERIES: Final = Dialect(
    drops=_NO_SAMPLING | words("parallel_tool_calls"), renames={"max_tokens": "max_completion_tokens"}
)


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """A provider that speaks OpenAI's API.

    Args:
        api_base: its usual address; None for servers that everyone runs at home.
        api_path: what to add to an address that is only a host.
        key_variables: environment variables of its key, the usual one first.
        base_variables: environment variables of its address.
        needs_key: whether it answers anybody without a key.
        dialect: how it differs.
        reasons: names of models that take fewer options since they reason, and the dialect for each.
    """

    api_base: str | None = None
    api_path: str = ""
    key_variables: tuple[str, ...] = ()
    base_variables: tuple[str, ...] = ()
    needs_key: bool = True
    dialect: Dialect = PLAIN
    reasons: tuple[tuple[re.Pattern[str], Dialect], ...] = ()

    def dialect_for(self, model: str) -> Dialect:
        return next((dialect for names, dialect in self.reasons if names.match(model)), self.dialect)


def _home(*variables: str, api_base: str | None = None, api_path: str = "") -> Provider:
    """A server of one's own: no key needed; the address is the alias's, or the variable's."""
    return Provider(
        api_base=api_base,
        api_path=api_path,
        base_variables=tuple(f"{name}_API_BASE" for name in variables),
        key_variables=tuple(f"{name}_API_KEY" for name in variables),
        needs_key=False,
    )


LEAN: Final[dict[str, Provider]] = {
    "openai": Provider(
        api_base="https://api.openai.com/v1",
        key_variables=("OPENAI_API_KEY",),
        base_variables=("OPENAI_BASE_URL", "OPENAI_API_BASE"),
        reasons=((re.compile(r"o\d"), _O_SERIES), (re.compile(r"gpt-5(?!.*chat)"), _GPT_5)),
    ),
    "custom_openai": _home("CUSTOM_OPENAI"),
    "openai_like": _home("OPENAI_LIKE"),
    "litellm_proxy": _home("LITELLM_PROXY"),
    "hosted_vllm": _home("HOSTED_VLLM"),
    "vllm": _home("VLLM", "HOSTED_VLLM"),
    "lm_studio": _home("LM_STUDIO"),
    "llamafile": _home("LLAMAFILE", api_base="http://127.0.0.1:8080/v1"),
    "ollama": _home("OLLAMA", api_base="http://127.0.0.1:11434", api_path="/v1"),
    "ollama_chat": _home("OLLAMA", api_base="http://127.0.0.1:11434", api_path="/v1"),
    "groq": Provider(
        api_base="https://api.groq.com/openai/v1",
        key_variables=("GROQ_API_KEY",),
        base_variables=("GROQ_API_BASE",),
    ),
    "together_ai": Provider(
        api_base="https://api.together.ai/v1",
        key_variables=("TOGETHERAI_API_KEY", "TOGETHER_API_KEY", "TOGETHER_AI_API_KEY", "TOGETHER_AI_TOKEN"),
        base_variables=("TOGETHER_AI_API_BASE",),
    ),
    "openrouter": Provider(
        api_base="https://openrouter.ai/api/v1",
        key_variables=("OPENROUTER_API_KEY", "OR_API_KEY"),
        base_variables=("OPENROUTER_API_BASE",),
        dialect=Dialect(extras={"usage": {"include": True}}),
    ),
    "deepseek": Provider(
        api_base="https://api.deepseek.com/beta",
        key_variables=("DEEPSEEK_API_KEY",),
        base_variables=("DEEPSEEK_API_BASE",),
        dialect=Dialect(drops=words("reasoning_effort"), flat_text=True),
    ),
    "fireworks_ai": Provider(
        api_base="https://api.fireworks.ai/inference/v1",
        key_variables=(
            "FIREWORKS_API_KEY",
            "FIREWORKS_AI_API_KEY",
            "FIREWORKSAI_API_KEY",
            "FIREWORKS_AI_TOKEN",
        ),
        base_variables=("FIREWORKS_API_BASE",),
        dialect=Dialect(model_prefix="accounts/fireworks/models/"),
    ),
    "xai": Provider(
        api_base="https://api.x.ai/v1",
        key_variables=("XAI_API_KEY",),
        base_variables=("XAI_API_BASE",),
        dialect=_NO_REASONING,
        reasons=(
            (
                re.compile(r"grok-(3-mini|4|code)"),
                Dialect(drops=words("stop frequency_penalty presence_penalty reasoning_effort")),
            ),
        ),
    ),
    "mistral": Provider(
        api_base="https://api.mistral.ai/v1",
        key_variables=("MISTRAL_API_KEY",),
        base_variables=("MISTRAL_API_BASE",),
        dialect=Dialect(
            drops=words("logit_bias logprobs top_logprobs reasoning_effort"),
            renames={"seed": "random_seed"},
            flat_text=True,
            drops_names=True,
            reports_usage_unasked=True,
        ),
    ),
    "perplexity": Provider(
        api_base="https://api.perplexity.ai",
        key_variables=("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
        base_variables=("PERPLEXITY_API_BASE",),
        dialect=Dialect(
            drops=words("stop seed tools tool_choice parallel_tool_calls logit_bias logprobs top_logprobs"),
            reports_usage_unasked=True,
        ),
    ),
}

# Where the key of a provider is kept if not in PROVIDER_API_KEY (LiteLLM reads the same variables).
_OTHER_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "ai21_chat": ("AI21_API_KEY",),
    "anthropic_text": ("ANTHROPIC_API_KEY",),
    "apertis": ("STIMA_API_KEY",),
    "azure_text": ("AZURE_API_KEY",),
    "cohere_chat": ("COHERE_API_KEY", "CO_API_KEY"),
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
    "datarobot": ("DATAROBOT_API_TOKEN",),
    "friendliai": ("FRIENDLIAI_API_KEY", "FRIENDLI_TOKEN"),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "huggingface": ("HUGGINGFACE_API_KEY", "HF_TOKEN"),
    "meta_llama": ("LLAMA_API_KEY",),
    "nano-gpt": ("NANOGPT_API_KEY",),
    "scaleway": ("SCW_SECRET_KEY",),
    "scx-ai": ("SCX_API_KEY",),
    "tensormesh": ("TENSORMESH_INFERENCE_API_KEY",),
    "text-completion-codestral": ("CODESTRAL_API_KEY",),
    "text-completion-inception": ("INCEPTION_API_KEY",),
    "text-completion-openai": ("OPENAI_API_KEY",),
    "veniceai": ("VENICE_AI_API_KEY",),
}


def canonical(provider: str) -> str:
    """LiteLLM's spelling of a provider's name."""
    return _SYNONYMS.get(provider, provider)


def known_provider(provider: str) -> bool:
    """Whether there is such a provider: any that LiteLLM knows, and demo."""
    return canonical(provider) in NAMES or provider == DEMO


def api_key_from_environment(provider: str) -> str | None:
    """The provider's key as the operator has set it, usually in PROVIDER_API_KEY."""
    provider = canonical(provider)
    lean = LEAN.get(provider)
    usual = (f"{provider.upper().replace('-', '_')}_API_KEY",)
    return _first_set(lean.key_variables if lean is not None else _OTHER_KEYS.get(provider, usual))


def api_base_from_environment(provider: str) -> str | None:
    """Where the operator says that a provider is, for those that we speak to ourselves."""
    lean = LEAN.get(canonical(provider))
    return _first_set(lean.base_variables) if lean is not None else None


def _first_set(variables: tuple[str, ...]) -> str | None:
    return next((value for name in variables if (value := os.environ.get(name))), None)
