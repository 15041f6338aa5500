"""Images: opening, decoding, pixels, large pictures, DICOM, video, and loading many of them."""
