"""Turn checkpoints of open_clip into CLIPModel folders."""
