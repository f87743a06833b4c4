"""What the page does in the browser itself, beside what Gradio does: Ctrl+V, words where a camera fails, silent icons."""

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

# Gradio says nothing when a camera is refused or missing, nor where the browser hides cameras and clipboards from pages:
# everywhere but under https and on the machine itself.
_CAMERA = """
const say = words => {
  let told = document.getElementById("source-told");
  if (!told) {
    told = Object.assign(document.createElement("div"), {id: "source-told", className: "message busy"});
    told.setAttribute("role", "alert");
    document.getElementById("photograph").after(told);
  }
  told.textContent = words;
  told.hidden = !words;
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
