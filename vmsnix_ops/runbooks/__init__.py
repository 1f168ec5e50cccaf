"""The runbooks: which there are, how they are given their parameters, and how a run becomes evidence.

``catalog`` reads the notebooks, ``parameters`` types what people give them, ``execute`` runs one through
papermill, ``archive`` keeps the executed notebook, ``report`` turns it into a page, ``github`` tells the CI
job.
"""
