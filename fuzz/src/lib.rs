//! Fuzz targets of the wire formats.
