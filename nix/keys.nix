# The keys that may log in as the administrator (`altf4`, with sudo except on the attested images) on every image of
# this flake.
#
# READ THIS BEFORE YOU BUILD. Anyone with the private key of one of these public keys is root on every machine that
# is started from an image that is not attested. ALT-F4 LLC published the two keys below for this purpose in its
# repository vms.nix (commit b70a1201b006e6416cae1cdcf0cdef580acd68db, June 2024, modules/profiles/common.nix). They
# were copied from there. It was not confirmed since then that their owners still use them.
#
# - At ALT-F4: compare each key with its owner's key before the first publish, and remove people who left.
# - Anywhere else: replace the whole list. See docs/how-to/outside-altf4.md.
#
# An empty list fails the build with a message. Format: "<type> <base64> <owner>". The keys are written
# into image-info.json, so that the publisher can show who will have access.
[
  "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDkhuhfzyg7R+O62XSktHufGmmhy6FNDi/NuPPJt7bI+ hbjydev"
  "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAACAQDEoozwkEkRw4BtbKU8+boF6ixoOiE20cpbi1EXHJqnT3unSF2Jb7nqV+ywVVtRAGMtK5mV8j9smjx0A5/yCJkpNy1hamZC7Xx5WHUWn/M6+Xk6OkHSW9DcCPli+RgiL5ESHVhRJWpC9Vp+afXJBrzXzu1mPcObP9cWiMPCy67pVp1Rh/r7leUdzjAORQFxmynjdh8WleguNU7F1IfaGm4JlSdUxQTSFbJJst03gQSQdHoUxtqvBeEAyj1LhN6t7eY1sDSQpflafoVGYznE3GrPn39qATgT1fCr/ELKRqe+j6d7XEJdcGClcAF23lrZhTiMTkrTortHbi/BGV4jDIzT2OyFrXXjZT8ZBl1z7Bm9h9i0JaVjLdUnGJH8Sc/pBt2PWOM9EOaFuhp8uc2LbjqgCeK1Y/zysbV7U6Qz4ChCMLTm7ccPnXctUc69McLcj5q1Jy28xZOED6biUqg9kSZvLQ84Dlrxy2/MjSwINfFBqEP3AhCRhrmxrtPHBM0BpYHAK7xyJyaHPOXVf0MjhH3jLZ+TKlXbXzNoAvh0jrG6oJnprDCeX9OKPOmsxYZMeuHMswAIh6MAibOlQmDfLGGB5cCCSjc0E05I5hxF1U24neZcg8Yk/kbanoRKwPzJAtR+GVdQ0wJJnTQIpTIi6DVsKniHTC5oA/4biLDd6yPpDw== erikreinert"
]
