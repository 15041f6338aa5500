"""Images compared with other images: normal references, or the others of a batch."""
