"""Models for EleutherAI's lm-evaluation-harness: import this module, then model="flamingo_jax"."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM  # type: ignore[import-not-found, import-untyped, unused-ignore]
from lm_eval.api.registry import register_model  # type: ignore[import-not-found, import-untyped, unused-ignore]

from flamingo_jax.evaluate.adapters.zero_shot import Request, open_model, request


@register_model("flamingo_jax")
class FlamingoJax(LM):
    """`model_args="model=DIR"`; further arguments are those of `ZeroShot`."""

    MULTIMODAL = True

    def __init__(self, model: str, **options: Any):
        super().__init__()
        self._zero_shot = open_model(model, options)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return self._zero_shot.answer([_request(*request.args) for request in requests])

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        return [
            self._zero_shot.loglikelihood((text, _pictures(*images)), continuation)
            for text, continuation, *images in (request.args for request in requests)
        ]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        raise NotImplementedError(
            "flamingo_jax does not score whole documents here (output_type loglikelihood_rolling): "
            "use perplexity() of a loaded model, see docs/inference.md"
        )


def _request(text: str, settings: dict[str, Any], *images: Any) -> Request:
    return request((text, _pictures(*images)), settings, "max_gen_toks")


def _pictures(images: Any = None) -> Sequence[Any]:
    return (images or {}).get("visual", ())
