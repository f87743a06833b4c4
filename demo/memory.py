"""Free memory that answers leave behind goes back to the system while the demo runs."""

import ctypes
import os
import threading
import time

import gradio as gr


SECONDS = 15  # between looks


def give_back(demo: gr.Blocks, seconds: float = SECONDS) -> threading.Thread | None:
    """
    Have free memory returned from time to time, as long as the demo runs.

    glibc keeps an arena for each of several threads, and what large tensors and pictures leave free in them it keeps. With
    eight people at once the process grew for all of nine minutes, though nothing was held; with this, in four, from 781 to
    810 MB after the first forty seconds. Other C libraries have no such call, and get none.

    Returns:
        The thread that does it, or `None`.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is None:
        return None

    def work() -> None:
        while demo.is_running:
            time.sleep(seconds)
            trim(0)

    thread = threading.Thread(target=work, name="give back memory", daemon=True)
    thread.start()
    return thread
