"""Inspection in a plant: what is written of each photograph, and what watches a line with it."""
