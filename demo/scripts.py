"""What the page does in the browser itself, beside what Gradio does: a photograph by Ctrl+V, and icons without a voice."""

# Ctrl+V anywhere gives a photograph to the field in sight; Gradio has a button for it alone. The names of what is pasted
# are all alike: the time tells one from the next.
_PASTE = """
document.addEventListener("paste", event => {
  const found = [...(event.clipboardData?.files ?? [])].find(one => one.type.startsWith("image/"));
  const field = [...document.querySelectorAll("#photograph, #was-fine")].find(one => one.offsetParent);
  const input = field?.querySelector("input[type=file]");
  if (!found || !input) return;
  event.preventDefault();
  const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "-");
  const files = new DataTransfer();
  files.items.add(new File([found], `pasted ${time}.${found.type.split("/")[1]}`, {type: found.type}));
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

SCRIPT = f"() => {{{_PASTE}{_QUIET}}}"
