"""Notebooks as programs.

``catalog`` lists the runbooks, ``declarations`` reads their parameters cells, ``parameters`` converts values,
``execution`` runs a notebook with papermill, ``evidence`` saves and archives the result, ``console`` is the
console in JupyterLab, and ``fleet`` runs many runbooks at once.
"""
