"""Judges reconstructions the way a radiologist would: errors by tissue, noise, edges, emboli."""
