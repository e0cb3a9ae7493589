"""CT volumes from files to patches: formats, DICOM, data sets, the patch store, patches and latents."""
