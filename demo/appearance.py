"""How the page looks: the fonts of the person's own machine, and a little style, for light and dark."""

import gradio as gr


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
svg.losses { width: 100%; max-width: 40rem; color: var(--body-text-color) }
svg.losses text { fill: currentColor; font-size: 13px } svg.losses line { stroke: currentColor; stroke-width: 1 }
svg.losses polyline { fill: none; stroke: #4076ba; stroke-width: 2 }
@media (max-width: 480px) { .why figure { flex: 1 1 7rem }
  .verdict strong { font-size: 1.15rem } svg.normals text { font-size: 19px } }
"""


def theme() -> gr.themes.Base:
    """Gradio's default theme fetches its fonts from elsewhere; this one takes what is there."""
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONOSPACED)
