"""The tab on which a camera is watched: one frame after the other, each judged before the next is taken."""

import base64
import binascii
import json

import gradio as gr

from .inputs import CAMERA, HIDDEN, MODEL, product_field, read_bytes, refusals, say_refusals
from .inspect_tab import inspect_source, verdict_html
from .session import PREDICT_PRODUCT, Session
from .style import data_url, legend_html


FRAME = "data:image/jpeg;base64,"  # how the page sends a frame
MAX_FRAME = 8 * 2**20  # letters
SHOWN_SIDE = 640  # pixels of the heat map: it goes over the network with each frame
VIEW = """
<div id="live-view"><video muted playsinline aria-label="What the camera sees"></video></div>
<div id="live-status" class="message plain" role="status">Not running. Choose the product and press Start.</div>
"""
# The page takes a frame, asks, and takes the next one once the answer stands there: what the camera sees meanwhile is
# dropped, and nobody waits behind more than one frame of this page. (Gradio's own stream would hold the model for as long as
# it runs, and keep each frame as a file.) A verdict is in sight while it is of the last seconds alone: `data-live` of the
# body says so to the style sheet.
SCRIPT = (
    f"const LENS = {json.dumps(CAMERA.constraints)};"
    + """
const live = window.anopleLive = {frame: ""};
const LATE = 8, GIVEN_UP = 60, FROZEN = 4, SIDE = 1600;  // seconds, and pixels of the longer side of a frame
let stream = null, run = 0, asked = null, seen = -1, answers = [];
const view = () => document.querySelector("#live-view video");
const now = () => performance.now() / 1000;
const tell = (state, words) => {
  document.body.dataset.live = state;
  const status = document.getElementById("live-status");
  if (status && status.textContent !== words) status.textContent = words;
};
const end = (words, state = "ended") => {
  stream?.getTracks().forEach(track => track.stop());
  stream = null;
  view().srcObject = null;
  tell(state, words);
};
const next = async () => {
  if (asked) return;
  const mine = run, since = now(), video = view();
  const isNew = () => video.videoWidth && video.currentTime !== seen && !stream.getVideoTracks()[0].muted;
  while (stream && run === mine && !isNew()) {
    if (now() - since > FROZEN) return end("The camera gives no pictures any more: look after it, and press Start.");
    await new Promise(done => setTimeout(done, 20));
  }
  if (!stream || run !== mine || asked) return;
  if (!video.offsetParent) return end("Stopped when another tab was opened. Press Start to go on.");
  seen = video.currentTime;
  const scale = Math.min(1, SIDE / Math.max(video.videoWidth, video.videoHeight));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight].map(side => Math.round(side * scale));
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  // in short lines: 64 hexadecimal digits in a row name a file, and those of others are refused
  live.frame = canvas.toDataURL("image/jpeg", 0.92).replace(/.{60}/g, "$& ");
  asked = {run: mine, at: now()};
  document.getElementById("live-next").click();
};
live.answered = refused => {
  const of = asked?.run;
  asked = null;
  if (!stream) return;
  if (of === run) {
    answers = [...answers.filter(time => now() - time < 10), now()];
    const rate = answers.length > 1 ? (answers.length - 1) / (answers.at(-1) - answers[0]) : 0;
    tell("running", `Running${rate ? `: ${rate.toFixed(1)} frames a second` : ""}.`);
  }
  setTimeout(next, refused ? 1000 : 0);
};
live.start = async () => {
  if (stream) return;
  if (!ask) return tell("ended", `There is no camera at this address: ${secure}.`);
  tell("waiting", "Waiting for the camera.");
  const mine = ++run;
  let taken;
  try { taken = await ask(LENS); }
  catch (error) { return tell("ended", `${cameraFault(error)}. Then press Start.`); }
  if (run !== mine) return taken.getTracks().forEach(track => track.stop());
  stream = taken;
  stream.getVideoTracks()[0].addEventListener("ended", () => {
    if (run === mine && stream) end("The camera is lost: connect it again, and press Start.", "lost");
  });
  [answers, seen] = [[], -1];
  view().srcObject = stream;
  await view().play().catch(() => {});
  next();
};
setInterval(() => {
  const waited = stream && asked ? now() - asked.at : 0;
  if (waited > GIVEN_UP) { asked = null; end(`The program did not answer for ${GIVEN_UP} seconds: press Start to try again.`); }
  else if (waited > LATE) tell("late", `No answer for ${waited.toFixed(0)} seconds: the program is busy.`);
}, 1000);
document.addEventListener("click", event => {
  if (event.target.closest("#live-start")) live.start();
  if (event.target.closest("#live-stop")) { run += 1; end("Stopped."); }
});
"""
)


def live_tab(start: Session, session: gr.State) -> gr.Dropdown:
    """Lay out the tab. Returns the list of products, which teaching changes."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            product = product_field([PREDICT_PRODUCT, *start.products], "live-product")
            with gr.Row():
                gr.Button("Start", variant="primary", elem_id="live-start")
                gr.Button("Stop", variant="stop", elem_id="live-stop")
            gr.HTML(VIEW)
        with gr.Column(scale=3, min_width=300):
            verdict = gr.HTML(elem_id="live-verdict")
            picture = gr.HTML(elem_id="live-picture")
            gr.HTML(legend_html())
    frame = gr.Textbox(visible="hidden", label="Frame")
    next_button = gr.Button("Next frame", visible="hidden", elem_id="live-next")
    judged = next_button.click(
        inspect_frame,
        [frame, product, session],
        [verdict, picture],
        js="(frame, product, session) => [window.anopleLive.frame, product, session]",
        show_progress="hidden",
        **HIDDEN,
        **MODEL,
    )
    judged.success(None, js="() => window.anopleLive.answered(false)", **HIDDEN)
    refused = say_refusals(judged, session, verdict, emptied=[picture])
    refused.then(None, js="() => window.anopleLive.answered(true)", **HIDDEN)
    return product


def inspect_frame(frame: str, product: str, session: Session) -> tuple[str, str]:
    """
    Judge one frame of a camera, of which nothing is kept.

    Args:
        frame: a JPEG file as a data address, perhaps with blanks in it.
        product: the product it shows, or "find it yourself".

    Returns:
        The verdict and the heat map, as HTML.
    """
    with refusals(session):
        inspection = inspect_source(session, read_bytes("This frame", frame_bytes(frame)), product)
    heat_map = inspection.heat_map
    heat_map.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return verdict_html(inspection), f'<img src="{data_url(heat_map)}" alt="Heat map of this frame">'


def frame_bytes(frame: str | None) -> bytes:
    """
    Take the bytes out of a frame's data address.

    Raises:
        ValueError: for what is none, or is too long.
    """
    frame = (frame or "").replace(" ", "")
    if not frame.startswith(FRAME) or len(frame) > MAX_FRAME:
        raise ValueError("This is no frame of a camera: press Stop, and Start again.")
    try:
        return base64.b64decode(frame.removeprefix(FRAME), validate=True)
    except binascii.Error as error:
        raise ValueError("This is no frame of a camera: press Stop, and Start again.") from error
