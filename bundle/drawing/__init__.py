"""Drawing of CT: planes, pictures of reconstructions, videos."""
