"""Draws CT: planes, pictures of reconstructions, videos."""
