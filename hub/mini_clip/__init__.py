"""The embedded CLIP `mini`: its pretraining on drawn products from nothing, and how patch features are measured."""
