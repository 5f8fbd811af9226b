"""Tiny policies that have learnt to answer any question with one of a few texts, any of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def taught(model_path: str, texts: Sequence[str], path: Path, steps: int = 40) -> str:
    """Trains a causal model on the texts alone, saves it with its processor, and returns the path."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(model_path)
    processor = AutoProcessor.from_pretrained(model_path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(steps):
        loss = 0
        for text in texts:
            asked = processor.tokenizer("<|im_start|>assistant\n")["input_ids"]
            said = processor.tokenizer(f"{text}<|im_end|>")["input_ids"]
            labels = torch.tensor([[-100] * len(asked) + said])
            loss = loss + model(input_ids=torch.tensor([asked + said]), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)
