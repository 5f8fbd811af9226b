"""From files to groups and questions, whatever the format: the reader of rows, the resolver of columns.

Preference rows live in `preferences`, pixels in `imagery`.
"""
