"""The EBS direct APIs: write an image's blocks into a snapshot, read them back, compare them."""
