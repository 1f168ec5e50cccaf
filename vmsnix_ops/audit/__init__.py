"""What is there in AWS, and how it compares with what the tables remember."""
