"""Which AMI is served to whom: promote, roll back, verify, and the history of a channel."""
