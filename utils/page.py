"""Pages in the browser: what those of all tasks have in common."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from utils.errors import BadSample, UserError
from utils.imports import require


def gradio() -> Any:
    """The library, asked not to call home.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    return require("gradio", extra="page")


def shown_to_people(answer: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose sentences about bad input appear on the page."""

    @functools.wraps(answer)
    def answered(*arguments: Any) -> Any:
        try:
            return answer(*arguments)
        except (UserError, BadSample) as error:
            raise gradio().Error(str(error)) from None

    return answered


def serve(page: Any, host: str, port: int | None) -> None:
    """Serve a page until interrupted; nothing outside of this machine is asked for.

    Args:
        page: `gradio.Blocks`.
        host: 127.0.0.1 for this machine alone, 0.0.0.0 for all that reach it.
        port: None takes the first free one from 7860 on.

    Raises:
        UserError: the port is taken.
    """
    library = gradio()
    # The themes' own fonts would be fetched from elsewhere.
    theme = library.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        page.launch(server_name=host, server_port=port, theme=theme, share=False, quiet=True, prevent_thread_lock=True)
    except OSError as error:
        raise UserError(f"ui_port: {' '.join(str(error).split())}") from None
    print(f"{page.local_url}  (end with Ctrl-C)", flush=True)
    page.block_thread()


def recording_page(title: str, answer: Callable[[str], Any], shown: list[Any]) -> Any:
    """`gradio.Blocks` that take a recording, from a file or the microphone, and show what `answer(path)` says of it.

    Args:
        title: what is done with it.
        answer: the file's path -> a value for each of `shown`.
        shown: gradio's components, made with `render=False`.
    """
    library = gradio()
    with library.Blocks(title=title, analytics_enabled=False) as page:
        library.Markdown(f"## {title}")
        recording = library.Audio(label="Recording", type="filepath", elem_id="recording")
        press = library.Button("Listen", variant="primary", elem_id="listen")
        for component in shown:
            component.render()
        press.click(shown_to_people(_asked_for(answer)), [recording], shown, api_name="listen")
    return page


def _asked_for(answer: Callable[[str], Any]) -> Callable[[str | None], Any]:
    def answered(path: str | None) -> Any:
        if path is None:
            raise UserError("there is no recording yet: choose a file or record one")
        return answer(path)

    return answered
