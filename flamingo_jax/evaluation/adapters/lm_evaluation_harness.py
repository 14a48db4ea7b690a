"""Models for EleutherAI's lm-evaluation-harness: import this module, then model="flamingo_jax"."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM  # type: ignore[import-not-found, import-untyped, unused-ignore]
from lm_eval.api.registry import register_model  # type: ignore[import-not-found, import-untyped, unused-ignore]

from flamingo_jax.evaluation.adapters.zero_shot import ZeroShot

MAX_NEW_TOKENS = 32  # where a task names no number


@register_model("flamingo_jax")
class FlamingoJax(LM):
    """`model_args="model=DIR"`; further arguments are those of `ZeroShot`."""

    MULTIMODAL = True

    def __init__(self, model: str, **options: Any):
        super().__init__()
        known = {"prompt", "num_beams", "batch_size"}
        self._zero_shot = ZeroShot(model, **{k: v for k, v in options.items() if k in known and v})

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return [self._answer(*request.args) for request in requests]

    def _answer(self, text: str, settings: dict[str, Any], multimodal: Any = None) -> str:
        until = settings.get("until", ())
        return self._zero_shot.generate(
            [(text, (multimodal or {}).get("visual", ()))],
            int(settings.get("max_gen_toks", MAX_NEW_TOKENS)),
            [until] if isinstance(until, str) else until,
        )[0]

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        return [self._scored(*request.args) for request in requests]

    def _scored(self, text: str, continuation: str, multimodal: Any = None) -> tuple[float, bool]:
        pictures = (multimodal or {}).get("visual", ())
        return self._zero_shot.loglikelihood((text, pictures), continuation)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        raise NotImplementedError(
            "flamingo_jax does not score whole documents here; use "
            "flamingo_jax.models.scoring.perplexity"
        )
