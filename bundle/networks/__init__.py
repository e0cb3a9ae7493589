"""Networks: the generator (VQGAN), its quantizers and the two discriminators."""
