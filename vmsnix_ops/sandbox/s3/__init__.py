"""Amazon S3: buckets, their settings, objects, multipart uploads."""
