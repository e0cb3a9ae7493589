"""DICOM series: headers, geometry, screening, pixels, derived series."""
