"""Ctrl+V anywhere on the page gives a photograph to the field in sight; Gradio itself has a button for it alone."""

# The names of what is pasted are all alike; the time tells one from the next.
PASTE = """
() => document.addEventListener("paste", event => {
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
})
"""
