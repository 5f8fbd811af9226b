"""HTML pages of evaluations: that of `rs-rlhf eval` and that of `eval compare`, from one template.

What is measured lives in `evaluation` and `metrics`; here it is only laid out.
"""
