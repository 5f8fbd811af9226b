"""`rs-rlhf app`: a page in the browser to ask policies, rank their answers, score texts, and choose between texts.

What the page does is in plain modules (`labels`, `pairs`, `models`, `occlusion`), tested without a browser; `page` and
`server` alone know Gradio. Left out: scored data sets (`curation/browser`), reports of runs (`runs`).
"""
