"""DICOM in, jobs out; and every word the workers share."""
