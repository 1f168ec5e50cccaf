"""IAM: what each function needs, the policies of each job, and policies that others wrote."""
