"""What stands on the page as HTML: every name and message is escaped here."""

import html

from modeling_anople.runtime.heat_maps import LINE

from .inspecting import Finding
from .judging import scale_picture


WELCOME = (
    '<div class="verdict waiting" role="status">No photograph yet. Click an example, or drop, paste (Ctrl+V) or take one '
    "of your own.</div>"
)


def verdict_html(finding: Finding) -> str:
    """Say the verdict; the class is for colour, the words carry the meaning."""
    kind = "normal" if finding.verdict == "normal" else "anomalous" if finding.verdict == "anomalous" else "unsure"
    product = f"as {html.escape(finding.product)}" if finding.product else "close to none of the products taught"
    how = " (found by the detector)" if finding.found and finding.product else ""
    words, name = html.escape(finding.words), html.escape(finding.name)
    return (
        f'<div class="verdict {kind}" role="status"><strong>{words}</strong>'
        f"<span>{name}, judged {product}{how} in {finding.milliseconds:.0f} ms</span></div>"
    )


def message_html(message: str, kind: str = "done") -> str:
    """Say what was done, or what is to be done."""
    return f'<div class="message {kind}" role="status">{html.escape(message)}</div>'


def products_html(names: list[str]) -> str:
    """List the products that are known."""
    items = "".join(f"<li>{html.escape(name)}</li>" for name in names)
    return f'<div class="known"><span>Products known</span><ul>{items}</ul></div>'


def legend_html() -> str:
    """Show the fixed colour scale with its three marks."""
    return (
        '<figure class="scale" role="img" aria-label="Colour scale of all heat maps: blue to white is below the line, '
        f'amber to red above it"><img src="{scale_picture()}" alt=""><figcaption><span>0 good</span>'
        f"<span>{LINE:.2f} line</span><span>1 anomalous</span></figcaption></figure>"
    )
