"""GRPO with vLLM: pictures reach it in the size that the trainer counts, and another layout stops the run."""

import types

import pytest
from datasets import Dataset
from helpers import picture
from helpers.vllm_server import VLLMServer
from transformers import AutoProcessor
from trl.generation import vllm_client, vllm_generation

from rs_rlhf.errors import ModelMismatch
from rs_rlhf.trainers._compat import compare_layouts
from rs_rlhf.trainers.grpo import VisionGRPOConfig, VisionGRPOTrainer

OWN = {"min_pixels": 6 * 784, "max_pixels": 10 * 784}


@pytest.fixture
def server(tiny_vlm, monkeypatch):
    """A server with the checkpoint's budget; TRL's client without the weights, which need NCCL."""
    for module in (vllm_client, vllm_generation):
        monkeypatch.setattr(module, "is_vllm_available", lambda: True)
    for name in ("init_communicator", "update_named_params", "reset_prefix_cache"):
        monkeypatch.setattr(vllm_client.VLLMClient, name, lambda *_, **__: None)
    with VLLMServer(AutoProcessor.from_pretrained(tiny_vlm)) as running:
        yield running


def trainer_of(folder, model, url, sizes, **options):
    seen = []

    def reward(prompts, completions, images, **columns):
        seen.extend(row[0].size if row else None for row in images)
        return [float(i) for i in range(len(completions))]

    rows = []
    for i, size in enumerate(sizes):
        if size is not None:
            picture(i, *size).save(folder / f"{i}.png")
        rows.append({"prompt": f"What is {i}?", "images": [str(folder / f"{i}.png")] if size else []})
    given = {"per_device_train_batch_size": 2 * len(rows), "num_generations": 2, "max_completion_length": 4}
    given |= {"bf16": False, "use_cpu": True, "report_to": "none", "max_steps": 1, "save_strategy": "no"}
    given |= {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": url}
    given |= {"vllm_importance_sampling_correction": False, "disable_tqdm": True, "gradient_checkpointing": False}
    args = VisionGRPOConfig(**given | {"output_dir": str(folder / "out")} | options)
    return VisionGRPOTrainer(model, reward, args=args, train_dataset=Dataset.from_list(rows)), seen


SIZES = [(112, 112), (28, 84), None, (140, 40)]


def test_a_server_lays_images_out_as_the_trainer_counts_them(tmp_path, tiny_vlm, server):
    trainer, seen = trainer_of(tmp_path, tiny_vlm, server.url, SIZES, **OWN)
    assert server.sizes == [(84, 84)]  # asked before any training
    trainer.train()
    assert sorted(server.sizes[1:]) == [(56, 140), (84, 84), (140, 56)]
    token = trainer.processing_class.image_token_id
    assert sorted(prompt.count(token) for prompt in server.prompts) == [0, 9, 10, 10]
    assert sorted(map(str, seen)) == sorted(map(str, 2 * SIZES))  # the reward sees the images themselves


def test_images_as_they_are_would_be_laid_out_otherwise(tmp_path, tiny_vlm, server, monkeypatch):
    trainer, _ = trainer_of(tmp_path, tiny_vlm, server.url, SIZES, **OWN)
    monkeypatch.setattr(VisionGRPOTrainer, "settled", lambda self, images: images)
    with pytest.raises(ModelMismatch) as error:
        trainer.train()
    assert error.value.key == "max_pixels" and "No step was trained" in error.value.detail
    with pytest.raises(ModelMismatch):  # at the start already
        trainer_of(tmp_path, tiny_vlm, server.url, SIZES[::-1], **OWN)


def test_a_server_with_a_narrower_budget_is_found_at_the_start_or_by_its_image(tmp_path, tiny_vlm, server):
    with pytest.raises(ModelMismatch, match="an image out in 9 tokens where the trainer counts 16"):
        trainer_of(tmp_path, tiny_vlm, server.url, [(112, 112)], max_pixels=20 * 784)
    trainer, _ = trainer_of(tmp_path, tiny_vlm, server.url, [(56, 56), (112, 112)], max_pixels=20 * 784)
    with pytest.raises(ModelMismatch):
        trainer.train()


def test_an_engine_in_this_process_is_compared_by_its_prompts():
    generation = types.SimpleNamespace(
        _place_features=None, generate=lambda prompts, **_: ([[*ids, 7] for ids in prompts], [], None, None)
    )
    compare_layouts(generation)
    with pytest.raises(ModelMismatch, match="4 tokens where the trainer counts 3"):
        generation.generate([[1, 2, 3]])
