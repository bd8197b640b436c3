"""Jobs in, DICOM results back to the PACS."""
