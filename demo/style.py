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
.known ul { list-style: none; margin: .3rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .4rem }
.known li { margin: 0; padding: .15rem .7rem; border-radius: 1rem; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-secondary); overflow-wrap: anywhere }
.intro h1 { margin-bottom: .25rem } .intro p { max-width: 70ch }
.verdict { border-left: .5rem solid var(--border-color-primary); border-radius: .5rem; padding: .75rem 1rem;
  background: var(--background-fill-secondary); overflow-wrap: anywhere }
.verdict strong { display: block; font-size: 1.35rem; line-height: 1.3 }
.verdict span { color: color-mix(in srgb, var(--body-text-color) 78%, transparent) }
.verdict.normal { border-color: #4076ba } .verdict.anomalous { border-color: #da1002 }
.verdict.unsure { border-color: #ffc846 }
.message { padding: .6rem .9rem; border-radius: .5rem; background: var(--background-fill-secondary);
  border-left: .3rem solid #4076ba; overflow-wrap: anywhere }
.message.plain { border-left: 0; padding-left: 0; background: none; max-width: 75ch }
.message.busy { border-left-color: #ffc846 }
.scale { margin: 0 } .scale img { width: 100%; height: .7rem; border-radius: .2rem; display: block }
.scale figcaption { display: flex; justify-content: space-between; font-size: .85rem;
  color: color-mix(in srgb, var(--body-text-color) 78%, transparent) }
svg.normals { width: 100%; max-width: 48rem; color: var(--body-text-color) }
svg.normals text { fill: currentColor; font-size: 13px }
svg.normals circle { fill: #4076ba; stroke: var(--background-fill-primary); stroke-width: 1 }
svg.normals circle.flagged { fill: #da1002 }
svg.normals line { stroke: currentColor; stroke-width: 1.5 } svg.normals line.calibrated { stroke-dasharray: 4 3 }
.why { display: flex; flex-wrap: wrap; gap: .75rem; align-items: flex-start } .why figure { margin: 0; flex: 0 1 10rem; min-width: 7rem }
.why img { width: 100%; border-radius: .4rem; display: block } .why p { flex: 1 1 14rem; margin: 0; overflow-wrap: anywhere }
.why figcaption { font-size: .8rem; line-height: 1.25; margin-top: .25rem; overflow-wrap: anywhere;
  color: color-mix(in srgb, var(--body-text-color) 78%, transparent) }
#results img.thumbnail { height: 2.6rem; width: auto; border-radius: .2rem; display: block; margin: 0 }
@media (max-width: 480px) { .why figure { flex: 1 1 7rem }
  .verdict strong { font-size: 1.15rem } svg.normals text { font-size: 19px } }
"""


def theme() -> gr.themes.Base:
    """Gradio's default theme fetches its fonts from elsewhere; this one takes what is there."""
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONOSPACED)


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
  NotAllowedError: "The camera was refused. Allow it for this page in the browser, or upload a photograph.",
  NotFoundError: "No camera was found. Connect one, or upload a photograph.",
  NotReadableError: "The camera is busy. Close the program that uses it, or upload a photograph.",
};
const cameras = navigator.mediaDevices, ask = cameras?.getUserMedia?.bind(cameras);
if (ask) cameras.getUserMedia = wanted => ask(wanted).then(stream => (say(""), stream), error => {
  say(FAILED[error.name] ?? `The camera cannot be used (${error.message}). Upload a photograph.`);
  throw error;
});
document.addEventListener("click", event => {
  const source = event.target.closest("#photograph button")?.ariaLabel;
  const secure = "the browser allows that under https and on the machine itself alone";
  if (source === "Capture from camera" && !ask) say(`There is no camera at this address: ${secure}. Upload a photograph.`);
  else if (source === "Paste from clipboard" && !navigator.clipboard)
    say(`This button cannot paste at this address: ${secure}. Press Ctrl+V.`);
  else if (source) say("");
});
"""
SCRIPT = f"() => {{{_PASTE}{_QUIET}{_CAMERA}}}"


def message_html(message: str, kind: str = "done") -> str:
    """Say what was done, or what is to be done."""
    return f'<div class="message {kind}" role="status">{html.escape(message)}</div>'


def products_html(names: list[str]) -> str:
    """List the products that are known."""
    items = "".join(f"<li>{html.escape(name)}</li>" for name in names)
    return f'<div class="known"><span>Products known</span><ul>{items}</ul></div>'


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
