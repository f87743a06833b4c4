"""
A small Hub on this machine, for the real `huggingface_hub` client to talk to over a real connection.

The tests push to it and load from it, and `hub.round_trip` takes a detector there and back. It lives here and not in
`tests/` because `hub` must not import tests. It speaks what the client asks for when it creates, uploads, lists and
downloads model and Space repositories; files are kept by their SHA-256 and a large file with another one is refused.
The newer transfer of large files (Xet) is not spoken: set HF_HUB_DISABLE_XET=1, a setting that the client documents,
and it uses the LFS protocol.
"""

from .server import LocalHub


__all__ = ["LocalHub"]
