"""What the cards of models and of data sets share: names in place of private paths, and the citation."""

from __future__ import annotations

import re

_FOLDERS = re.compile(r"""(?<![\w.~/-])(?:~|\.\.|(?=/))/(?:[^\s/,"']+/)*""")  # of a path inside a text
_ADDRESS = re.compile(r"https?://[^\s,\"']+")
CITATION = """\
@inproceedings{muhtar2025quality,
  title     = {Quality-Driven Curation of Remote Sensing Vision-Language Data via Learned Scoring Models},
  author    = {Muhtar, Dilxat and Zhang, Enzhuo and Li, Zhenshi and Gu, Feng and He, Yanglangxing and Xiao, Pengfeng
               and Zhang, Xueliang},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {38},
  year      = {2025},
  note      = {arXiv:2503.00743}
}"""


def hidden(value: object) -> str:
    """Returns a value as others may see it: of a path its name, of an address that it is one.

    Example:
        >>> hidden("/home/ada/data/pairs.jsonl:train"), hidden("--model=../out/a"), hidden("http://10.0.0.1:80/v1")
        ('pairs.jsonl:train', '--model=a', 'ADDRESS')
    """
    text = _ADDRESS.sub("ADDRESS", str(value))
    flag, equals, rest = text.partition("=") if text.startswith("--") else ("", "", text)
    parts = [
        part.rstrip("/").rpartition("/")[2] if part.startswith(("/", "~/", "../")) else part
        for part in rest.split(",")
    ]
    return flag + equals + _FOLDERS.sub("", ",".join(parts))
