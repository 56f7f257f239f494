"""Layers, embeddings and input encodings shared by the networks of `diffppl.networks`."""
