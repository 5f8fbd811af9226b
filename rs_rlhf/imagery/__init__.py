"""Pictures from any source to RGB within limits, and whether two pictures are the same.

Fitting a picture to a model's pixel budget does not live here (`models`), nor does the drawing of scenes (`data`).
"""
