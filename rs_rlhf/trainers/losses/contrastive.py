"""The contrastive losses of CLIP and SigLIP over the batches of all processes, and gradient caching.

A process computes the rows of the loss that are its own pairs', against the features of all processes; the mean over
processes, which DDP takes of the gradients, is then the loss of the whole batch. The features are gathered so that
their gradients come back. Pairs that are no true negatives of each other (the same picture, or the same text) are
kept out of the denominators.

[`cached_backward`] is GradCache (Gao et al. 2021, arXiv 2101.06983): features in chunks without a graph, the loss's
gradient with respect to the features, then chunk by chunk a second forward and the backward. Memory is that of one
chunk; the gradient is that of the whole batch.

Left out: SigLIP's exchange of features between neighbours (they are gathered whole), hard negatives, losses between
images or between texts.

Notation: B pairs of this process, W processes, D numbers of a feature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.nn.functional import cross_entropy, logsigmoid, normalize
from torch.utils.checkpoint import get_device_states, set_device_states

MAX_LOG_SCALE = math.log(100)  # CLIP clips the temperature so that logits are scaled by 100 at most


class _Gather(torch.autograd.Function):
    """Concatenates a tensor of all processes in the order of ranks; the gradient is the sum of all processes'."""

    @staticmethod
    def forward(ctx: FunctionCtx, tensor: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: torch.Tensor) -> torch.Tensor:
        total = grads[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def several_processes() -> bool:
    """Returns whether this is one of several processes that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenates a tensor (B, …) of all processes, with gradient; every process must give as many rows."""
    return _Gather.apply(tensor) if several_processes() else tensor


def same_pairs(keys: torch.Tensor) -> torch.Tensor:
    """Says which pairs are no negatives of each other, without being the same one.

    Args:
        keys (`torch.Tensor` of shape (B, 2)): For each pair a number that stands for its picture, and one for its
            text.

    Returns:
        `torch.Tensor` of shape (B, W·B), bool: the pair of the column has the picture or the text of the row's.
    """
    others = gather(keys)
    same = (keys[:, None] == others[None]).any(-1)
    row = torch.arange(len(keys), device=keys.device)
    same[row, row + _offset(len(keys))] = False
    return same


def _offset(rows: int) -> int:
    return rows * dist.get_rank() if several_processes() else 0


def contrastive_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    log_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    same: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of this process's pairs among those of all processes; the mean over processes is the batch's loss.

    Args:
        images, texts (`torch.Tensor` of shape (B, D)): Features of this process's pairs.
        log_scale (`torch.Tensor`): The model's `logit_scale`, the logarithm of what the cosines are multiplied by.
        bias (`torch.Tensor`, *optional*): SigLIP's `logit_bias`. With it the loss is the pairwise sigmoid of SigLIP
            (Zhai et al. 2023, arXiv 2303.15343), without it the symmetric InfoNCE of CLIP (Radford et al. 2021, arXiv
            2103.00020).
        same (`torch.Tensor` of shape (B, W·B), *optional*): What is no negative, see [`same_pairs`].

    Returns:
        `torch.Tensor`: A number, in float32.

    Example:
        >>> import torch
        >>> from rs_rlhf.trainers.losses.contrastive import contrastive_loss
        >>> contrastive_loss(torch.eye(2), torch.eye(2), torch.tensor(0.0)).item()  # ln(1 + 1/e)
        0.3132616877555847
    """
    with torch.autocast(images.device.type, enabled=False):
        images, texts = normalize(images.float(), dim=-1), normalize(texts.float(), dim=-1)
        width = images.shape[1]
        everything = gather(torch.cat([images, texts], dim=1))  # in one go: collectives in backward keep one order
        all_images, all_texts = everything[:, :width], everything[:, width:]
        scale = log_scale.float().exp()
        right = torch.arange(len(images), device=images.device) + _offset(len(images))
        by_text = scale * texts @ all_images.T
        if bias is not None:
            signs = torch.full_like(by_text, -1.0)
            signs[torch.arange(len(right)), right] = 1.0
            terms = logsigmoid(signs * (by_text + bias.float()))
            return -(terms if same is None else terms.masked_fill(same, 0.0)).sum(1).mean()
        by_image = scale * images @ all_texts.T
        if same is not None:
            by_text, by_image = (logits.masked_fill(same, -torch.inf) for logits in (by_text, by_image))
        return (cross_entropy(by_text, right) + cross_entropy(by_image, right)) / 2


def encode(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns image and text features (B, D) through the model's own forward, which DDP sees."""
    outputs = model(**inputs)
    return outputs.image_embeds, outputs.text_embeds


def cached_backward(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    parameters: Mapping[str, torch.Tensor],
    chunk_size: int,
    *,
    backward: Callable[[torch.Tensor], object],
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> torch.Tensor:
    """Runs forward and backward of a batch in chunks, with the gradient of the whole batch.

    Args:
        model: The dual encoder, wrapped by DDP or not.
        inputs (`dict`): What it takes; the first dimension of each tensor is B.
        loss (callable): Image and text features (B, D) -> the loss.
        parameters (`dict`): Parameters that the loss reads beside the features, such as `logit_scale`.
        chunk_size (`int`): Pairs of a chunk at most.
        backward (callable): Runs the backward of a number; the trainer's own, for its scaling.
        no_sync (callable): Context in which gradients are not exchanged: that of all chunks but the last.
        autocast (callable): Context of the forwards.

    Returns:
        `torch.Tensor`: The loss, detached.
    """
    count = len(next(iter(inputs.values())))
    chunks = [
        {name: tensor[start : start + chunk_size] for name, tensor in inputs.items()}
        for start in range(0, count, chunk_size)
    ]
    states, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append((torch.get_rng_state(), *get_device_states(*chunk.values())))
            with autocast():
                parts.append(encode(model, chunk))
    images, texts = (torch.cat(part).float().requires_grad_() for part in zip(*parts, strict=True))
    total = loss(images, texts)
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    grads = torch.autograd.grad(total, [images, texts, *trained])
    for number, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
        rows = slice(number * chunk_size, (number + 1) * chunk_size)
        last = number == len(chunks) - 1
        with nullcontext() if last else no_sync():
            with _replayed(*state, images.device.type), autocast():  # the same dropout as in the first forward
                features = encode(model, chunk)
            terms = [(part.float() * grad[rows]).sum() for part, grad in zip(features, grads[:2], strict=True)]
            if last:  # through the model's own backward, so that DDP exchanges them with the rest
                terms += [(parameter * grad).sum() for parameter, grad in zip(trained, grads[2:], strict=True)]
            backward(torch.stack(terms).sum())
    return total.detach()


@contextmanager
def _replayed(state: torch.Tensor, devices: list[int], of_devices: list[torch.Tensor], kind: str) -> Iterator[None]:
    """Puts the random states of the CPU, and of devices of a kind, back for a while."""
    with torch.random.fork_rng(devices, device_type=kind):
        torch.set_rng_state(state)
        set_device_states(devices, of_devices, device_type=kind)
        yield
