"""The page: rows of a picture and a text, a question, and an answer that grows."""

import html
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from flamingo_jax.errors import UserError
from flamingo_jax.serve.limits import BusyError
from flamingo_jax.serve.service import Service

logger = logging.getLogger(__name__)
MOST_EXAMPLES = 8
FONTS = ["system-ui", "sans-serif"]  # none is fetched
CSS = """
.gradio-container { max-width: 900px !important; width: 100%; margin: 0 auto !important; }
#answer textarea { font-size: 1.3rem; }
"""


def mount_page(app: FastAPI, service: Service) -> None:
    """The page at `/`. Nothing is sent anywhere else, and nothing is loaded from elsewhere."""
    gr.mount_gradio_app(
        app,
        make_page(service),
        path="/",
        max_file_size=service.limits.upload_bytes,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=gr.themes.Default(primary_hue="rose", font=FONTS, font_mono=["monospace"]),
        css=CSS,
    )


def make_page(service: Service) -> gr.Blocks:
    limits = service.limits
    num_examples = min(MOST_EXAMPLES, limits.max_images - 1)
    # What users upload is deleted after an hour.
    with gr.Blocks(title="flamingo_jax", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(
            "# flamingo_jax\nShow a picture, begin a text, and the model goes on. Examples teach "
            "it what you want: a picture each, and the text that belongs to it."
        )
        shown = gr.State(0)
        rows = [_row(f"Example {i + 1}", visible=False) for i in range(num_examples)]
        with gr.Row():
            more = gr.Button("Add an example", size="sm", elem_id="more")
            fewer = gr.Button("Remove the last", size="sm", elem_id="fewer")
        question = _row("Question", visible=True)
        with gr.Accordion("Settings", open=False):
            length = gr.Slider(
                1, limits.max_new_tokens, min(32, limits.max_new_tokens), step=1, label="New tokens"
            )
            temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature (0: the likeliest)")
            beams = gr.Slider(1, min(8, limits.max_batch), 1, step=1, label="Beams")
            seed = gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed")
        ask = gr.Button("Ask", variant="primary", elem_id="ask")
        answer = gr.Textbox(label="Answer", lines=2, interactive=False, elem_id="answer")

        def show(count: int) -> list[Any]:
            count = min(max(count, 0), num_examples)
            groups = [gr.update(visible=i < count) for i in range(num_examples)]
            # What is not seen is not asked.
            pictures = [gr.update() if i < count else None for i in range(num_examples)]
            texts = [gr.update() if i < count else "" for i in range(num_examples)]
            return [count, *groups, *pictures, *texts]

        changed = [shown, *(row[0] for row in rows), *(row[1] for row in rows),
                   *(row[2] for row in rows)]  # fmt: skip
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        more.click(lambda count: show(count + 1), shown, changed, **private)
        fewer.click(lambda count: show(count - 1), shown, changed, **private)

        async def answer_with(*values: Any) -> AsyncGenerator[str, None]:
            settings, chunks = values[:4], values[4:]
            async for text in _answers(service, settings, chunks):
                yield text

        ask.click(
            answer_with,
            [length, temperature, beams, seed, *(c for row in [*rows, question] for c in row[1:])],
            answer,
            concurrency_limit=None,  # requests wait in a line of our own
            preprocess=False,  # Gradio would decode pictures of any size
            api_visibility="private",
        )
    return page.queue(max_size=limits.max_waiting + limits.max_batch)


def _row(label: str, *, visible: bool) -> tuple[gr.Group, gr.Image, gr.Textbox]:
    name = label.lower().replace(" ", "-")
    hint = "how the answer begins; may be empty" if label == "Question" else "what it shows"
    with gr.Group(visible=visible) as group, gr.Row(equal_height=True):
        image = gr.Image(
            type="filepath",
            sources=["upload", "clipboard"],
            show_label=False,
            height=170,
            scale=1,
            min_width=220,
            buttons=[],
            placeholder="Drop a picture here",
            elem_id=f"{name}-picture",
        )
        text = gr.Textbox(
            label=label,
            placeholder=hint,
            lines=4,
            max_length=100_000,
            scale=2,
            elem_id=f"{name}-text",
        )
    return group, image, text


async def _answers(
    service: Service, settings: Sequence[Any], chunks: Sequence[Any]
) -> AsyncGenerator[str, None]:
    """What the answer box shows, again and again. gr.Error: what is shown as a refusal."""
    length, temperature, beams, seed = settings
    parts: list[list[str | Path]] = []
    for picture, text in zip(chunks[::2], chunks[1::2], strict=True):
        # Gradio has checked that the path is that of an upload.
        part: list[str | Path] = [Path(picture["path"])] if picture else []
        parts.append([*part, text] if text and text.strip() else part)
    *examples, question = parts
    if not question:
        raise _refused("the question is empty: give it a picture or some text")
    try:
        stream = service.stream(
            question,
            [example for example in examples if example],
            seed=int(seed or 0),
            max_new_tokens=int(length),
            temperature=float(temperature),
            num_beams=int(beams),
        )
        async with aclosing(stream) as texts:
            text = ""
            async for text in texts:
                yield text
            if not text:
                yield "(nothing: the model ended at once)"
    except UserError as error:
        raise _refused(_without_folders(str(error), parts)) from None
    except BusyError as error:
        raise _refused(f"{error}: try again in a few seconds") from None
    except Exception:
        logger.exception("a question failed")
        raise _refused("the server failed at this question; its log says why") from None


def _without_folders(message: str, parts: Sequence[Sequence[str | Path]]) -> str:
    for path in (part for row in parts for part in row if isinstance(part, Path)):
        message = message.replace(str(path), path.name)
    return message


def _refused(message: str) -> gr.Error:
    return gr.Error(html.escape(message), title="Not answered", print_exception=False)
