"""Amazon SNS as far as announcements need it: topics, and the messages that they were given."""

from . import messages, topics

__all__ = ["messages", "topics"]
