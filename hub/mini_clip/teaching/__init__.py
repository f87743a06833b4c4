"""Teach the embedded CLIP's vision tower by a large encoder on free photographs and textures."""
