"""Models for lmms-eval; it finds `manifest` through the entry point `lmms_eval.models`."""

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.model import lmms  # type: ignore[import-not-found, import-untyped, unused-ignore]

from flamingo_jax.evaluate.adapters.zero_shot import Question, open_model, request


class FlamingoJax(lmms):
    """`model_args="model=DIR"`; further arguments are those of `ZeroShot`."""

    is_simple = True

    def __init__(self, model: str, **options: Any):
        super().__init__()
        self._zero_shot = open_model(model, options)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        return self._zero_shot.answer(
            [
                request(self._question(text, *place), settings, "max_new_tokens")
                for text, settings, *place in (r.args for r in requests)
            ]
        )

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """(loss, whether greedy search gives it): lmms-eval takes the choice with the least.

        Wrapped, because version 0.7.3 turns a bare pair into text.
        """
        from lmms_eval.api.instance import GenerationResult  # type: ignore[import-not-found, import-untyped, unused-ignore]

        return [GenerationResult(self._loss(*request.args)) for request in requests]

    def _loss(self, text: str, target: Any, *place: Any) -> tuple[float, bool]:
        continuation = target if isinstance(target, str) else target(self._document(*place[1:]))
        question = self._question(text, *place)
        logprob, is_greedy = self._zero_shot.loglikelihood(question, continuation)
        return -logprob, is_greedy

    def _question(self, text: str, doc_to_visual: Any, *place: Any) -> Question:
        return text, doc_to_visual(self._document(*place)) or ()

    def _document(self, number: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][number]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError(
            "flamingo_jax answers single questions: its models have learnt no dialogue, so choose "
            "tasks without rounds (output_type generate_until or multiple_choice)"
        )


def manifest() -> Any:
    """What lmms-eval is told about this model."""
    from lmms_eval.models.registry_v2 import ModelManifest  # type: ignore[import-not-found, import-untyped, unused-ignore]

    name = f"{FlamingoJax.__module__}.{FlamingoJax.__name__}"
    return ModelManifest("flamingo_jax", simple_class_path=name)
