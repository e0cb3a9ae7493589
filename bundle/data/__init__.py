"""CT volumes from files to patches: reading, writing, datalists, the patch store and a phantom."""
