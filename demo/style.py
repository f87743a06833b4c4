"""How the page looks and speaks: its colors and fonts, what it does in the browser itself, and words as escaped HTML."""

import base64
import html
import io

import gradio as gr
import numpy as np
from PIL import Image

from modeling_anople.runtime.heat_maps import LINE, colorize


FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONOSPACED = ["ui-monospace", "Menlo", "Consolas", "monospace"]
CSS = """
.gradio-container { width: 100% !important; max-width: 84rem !important; margin: 0 auto !important }
.gradio-container main { width: 100% }
#examples .grid-wrap { min-height: 0; max-height: none }
#examples .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) }
.block:has(> .html-container > .prose:empty) { display: none }
#examples .thumbnail-item { height: auto; aspect-ratio: auto; overflow: hidden }
#examples .thumbnail-item img { height: auto; aspect-ratio: 1 }
#examples .caption-label { position: static; display: block; max-width: 100%; border: 0; white-space: normal;
  font-size: .8rem; line-height: 1.2 }
.known span { color: color-mix(in srgb, var(--body-text-color) 78%, transparent) }
.known ul { list-style: none; margin: .3rem 0 0; padding: 0; display: grid; gap: .4rem }
.known li { margin: 0; padding: .4rem .7rem; border-radius: .5rem; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-secondary); overflow-wrap: anywhere }
.intro h1 { margin-bottom: .25rem } .intro p { max-width: 70ch }
.verdict { border-radius: .5rem; padding: .75rem 1rem; overflow-wrap: anywhere; display: flex; align-items: center;
  gap: .9rem }
.verdict strong { display: block; font-size: 1.35rem; line-height: 1.3; color: inherit } .verdict span { display: block }
.verdict svg { flex: none; width: 2.6rem; height: 2.6rem }
.verdict.waiting { border: 2px dashed var(--border-color-primary); background: var(--background-fill-secondary) }
.message.refused { border-left-color: var(--body-text-color) } .message.refused strong { margin-right: .4rem }
.samples { display: flex; flex-wrap: wrap; gap: .35rem; margin-top: .3rem } .samples img { width: 3rem; height: 3rem;
  border-radius: .3rem; display: block }
.chosen { display: flex; flex-wrap: wrap; gap: .6rem } .chosen figure { margin: 0; width: 5.5rem }
.chosen img, .chosen .unread { width: 5.5rem; height: 5.5rem; border-radius: .3rem; display: grid; place-items: center }
.chosen .unread { background: #b3141b } .chosen .unread svg { width: 2.2rem; color: #fff !important }
.chosen figure.refused { width: 12rem }
.chosen figcaption { font-size: .8rem; line-height: 1.25; margin-top: .2rem; overflow-wrap: anywhere }
.message { padding: .6rem .9rem; border-radius: .5rem; background: var(--background-fill-secondary);
  border-left: .3rem solid #4076ba; overflow-wrap: anywhere }
.message.plain { border-left: 0; padding-left: 0; background: none; max-width: 75ch }
.message.busy { border-left-color: #ffc846 }
#live-view video { width: 100%; border-radius: .5rem; display: block; background: #000; aspect-ratio: 4 / 3 }
#live-picture img { width: 100%; max-height: 460px; object-fit: contain; object-position: left; display: block }
body:not([data-live=running]) :is(#live-verdict, #live-picture) { display: none }
body:is([data-live=late], [data-live=lost], [data-live=ended]) #live-status { font-weight: 600 }
.scale { margin: 0 } .scale img { width: 100%; height: .7rem; border-radius: .2rem; display: block }
.scale figcaption { display: flex; justify-content: space-between; font-size: .85rem;
  color: color-mix(in srgb, var(--body-text-color) 78%, transparent) }
svg.normals { width: 100%; max-width: 48rem; color: var(--body-text-color) }
svg.normals text { fill: currentColor; font-size: 13px }
svg.normals circle { fill: #4076ba; stroke: var(--background-fill-primary); stroke-width: 1 }
svg.normals circle.flagged { fill: #da1002 }
svg.normals rect.open { fill: #ffd24d; fill-opacity: .35 }
svg.normals line { stroke: currentColor; stroke-width: 1.5 } svg.normals line.calibrated { stroke-dasharray: 4 3 }
.why { display: flex; flex-wrap: wrap; gap: .75rem; align-items: flex-start } .why figure { margin: 0; flex: 0 1 10rem; min-width: 7rem }
.why img { width: 100%; border-radius: .4rem; display: block } .why p { flex: 1 1 14rem; margin: 0; overflow-wrap: anywhere }
.why figcaption { font-size: .8rem; line-height: 1.25; margin-top: .25rem; overflow-wrap: anywhere;
  color: color-mix(in srgb, var(--body-text-color) 78%, transparent) }
#results img.thumbnail { height: 2.6rem; width: auto; border-radius: .2rem; display: block; margin: 0 }
@media (max-width: 480px) { .why figure { flex: 1 1 7rem }
  .verdict strong { font-size: 1.15rem } svg.normals text { font-size: 19px } }
"""


# Each verdict with its color, its ink and its sign, so that none is told by its color alone.
VERDICTS = {
    "normal": ("#11682f", "#ffffff", "✓", "M4 13l5 5L20 6"),
    "anomalous": ("#b3141b", "#ffffff", "✕", "M5 5l14 14M19 5L5 19"),
    "unsure": ("#ffd24d", "#1d1600", "?", "M8 8.5a4 4 0 1 1 5.6 3.7c-1 .5-1.6 1.2-1.6 2.8M12 20v.1"),
}
CSS += "\n".join(
    f".verdict.{kind} {{ background: {color} }} .verdict.{kind}, .verdict.{kind} * {{ color: {ink} !important }}"
    for kind, (color, ink, *_) in VERDICTS.items()
)


def theme() -> gr.themes.Base:
    """Gradio's default theme fetches its fonts from elsewhere; this one takes what is there."""
    chosen = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONOSPACED)
    # In light mode the words of its buttons have a contrast of 3.7 to 1 alone.
    return chosen.set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_hover="#991b1b",
    )


# Ctrl+V anywhere gives an image to the field in sight; Gradio has a button for it alone. The names of what is pasted
# are all alike: the time tells one from the next.
_PASTE = """
document.addEventListener("paste", event => {
  const image = [...(event.clipboardData?.files ?? [])].find(one => one.type.startsWith("image/"));
  const field = [...document.querySelectorAll("#photograph, #was-fine")].find(one => one.offsetParent);
  const input = field?.querySelector("input[type=file]");
  if (!image || !input) return;
  event.preventDefault();
  const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "-");
  const files = new DataTransfer();
  files.items.add(new File([image], `pasted ${time}.${image.type.split("/")[1]}`, {type: image.type}));
  input.files = files.files;
  input.dispatchEvent(new Event("change", {bubbles: true}));
});
"""
# Gradio's icons have no name, and screen readers read each out as an image. The button or the label they stand in has one.
_QUIET = """
const quiet = () => document.querySelectorAll("svg:not([role]):not([aria-label]):not([aria-hidden])")
  .forEach(icon => icon.setAttribute("aria-hidden", "true"));
new MutationObserver(quiet).observe(document.body, {childList: true, subtree: true});
quiet();
"""
# Gradio says nothing when a camera is refused or missing, nor where the browser hides cameras and clipboards from pages:
# everywhere but under https and on the machine itself.
_CAMERA = """
const say = words => {
  let message = document.getElementById("source-message");
  if (!message) {
    message = Object.assign(document.createElement("div"), {id: "source-message", className: "message busy"});
    message.setAttribute("role", "alert");
    document.getElementById("photograph").after(message);
  }
  message.textContent = words;
  message.hidden = !words;
};
const FAILED = {
  NotAllowedError: "The camera was refused. Allow it for this page in the browser",
  NotFoundError: "No camera was found. Connect one",
  NotReadableError: "The camera is busy. Close the program that uses it",
};
const cameraFault = error => FAILED[error.name] ?? `The camera cannot be used (${error.message}). Try another one`;
const cameras = navigator.mediaDevices, ask = cameras?.getUserMedia?.bind(cameras);
if (ask) cameras.getUserMedia = wanted => ask(wanted).then(stream => (say(""), stream), error => {
  say(`${cameraFault(error)}, or upload a photograph.`);
  throw error;
});
const secure = "the browser allows that under https and on the machine itself alone";
document.addEventListener("click", event => {
  const source = event.target.closest("#photograph button")?.ariaLabel;
  if (source === "Capture from camera" && !ask) say(`There is no camera at this address: ${secure}. Upload a photograph.`);
  else if (source === "Paste from clipboard" && !navigator.clipboard)
    say(`This button cannot paste at this address: ${secure}. Press Ctrl+V.`);
  else if (source) say("");
});
"""
SCRIPT = f"{_PASTE}{_QUIET}{_CAMERA}"


def message_html(message: str, kind: str = "done") -> str:
    """Say what was done, what is to be done, or why it was refused."""
    before = "<strong>Not possible.</strong>" if kind == "refused" else ""
    role = "alert" if kind == "refused" else "status"
    return f'<div class="message {kind}" role="{role}">{before}{html.escape(message)}</div>'


def kind_of(verdict: str) -> str:
    """Name the color of a verdict: what is neither normal nor anomalous is unsure."""
    return verdict if verdict in VERDICTS else "unsure"


def sign_html(kind: str) -> str:
    """Draw the sign of a verdict in the color of the words beside it."""
    *_, path = VERDICTS[kind]
    return (
        '<svg aria-hidden="true" viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="3" '
        f'stroke-linecap="round" stroke-linejoin="round"><path d="{path}"/></svg>'
    )


def verdict_box(verdict: str, words: str, details: str) -> str:
    """Show a verdict in its color with its sign; words and details are escaped."""
    kind = kind_of(verdict)
    return (
        f'<div class="verdict {kind}" role="status">{sign_html(kind)}<div><strong>{html.escape(words)}</strong>'
        f"<span>{html.escape(details)}</span></div></div>"
    )


def legend_html() -> str:
    """Show the fixed color scale with its three marks."""
    return (
        '<figure class="scale" role="img" aria-label="Color scale of all heat maps: blue to white is below the line, '
        f'amber to red above it"><img src="{color_scale_url()}" alt=""><figcaption><span>0 good</span>'
        f"<span>{LINE:.2f} line</span><span>1 anomalous</span></figcaption></figure>"
    )


def color_scale_url() -> str:
    """Draw the fixed color scale as one row of pixels; returns a data address."""
    file = io.BytesIO()
    Image.fromarray(colorize(np.linspace(0, 1, 256)[None])).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def data_url(image: Image.Image) -> str:
    """Write a small image into an address of its own."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=85, method=2)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
