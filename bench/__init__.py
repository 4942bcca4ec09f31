"""Measurements: of the kernels, of capture and of the method. ``python -m bench --help`` lists the commands."""
