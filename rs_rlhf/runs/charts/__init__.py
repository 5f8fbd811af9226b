"""Charts by Vega-Lite: one function makes a chart's specification, from which come the page's SVG and the files.

What a chart shows is said by its caller (`plots`, the report, the pages of `evaluation` and `curation`).
"""
