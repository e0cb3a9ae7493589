"""Losses: hinge adversarial, feature matching, LPIPS on slices and the weighted generator objective."""
