"""IAM: the permissions of each function, the policies of each job, and checks of existing policies."""
