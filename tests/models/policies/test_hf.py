"""Any model of transformers answers through `generate`: a LLaVA, batched as one by one."""

import pytest
import torch
from helpers import picture

from rs_rlhf.data.group import make_group
from rs_rlhf.errors import DataError, OptionError
from rs_rlhf.models.policies.load import load_policy
from rs_rlhf.models.policies.sampling import SamplingOptions, as_groups


@pytest.fixture(scope="module")
def llava(llava_path):
    return load_policy(llava_path)


def test_batched_is_as_one_by_one(llava, items):
    together = llava.sample(items, 2, temperature=0, max_new_tokens=8)
    assert together == [llava.sample([item], 2, temperature=0, max_new_tokens=8)[0] for item in items]
    assert together[0] == together[4] != together[1] and all(own[0] == own[1] for own in together)
    sampled = llava.sample(items, 3, max_new_tokens=6)
    assert llava.sample(items, 3, max_new_tokens=6, batch_size=1) == sampled
    assert llava.sample(items, 3, max_new_tokens=6, seed=1) != sampled
    assert len({*sampled[0]}) > 1 and sampled[0] != sampled[4]
    assert llava.sample([], 3) == []


def test_greedy_is_that_of_the_bare_model(llava, llava_path, items):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(llava_path).eval()
    processor = AutoProcessor.from_pretrained(llava_path)
    text = "SYSTEM: Be short.\nUSER: <image>\nWhat is it?\nASSISTANT:"
    ids = processor(text=text, images=picture(1), return_tensors="pt")
    expected = []
    for _ in range(6):
        logits = model(**ids).logits[0, -1]
        logits[llava.never] = -torch.inf
        token = logits[: len(processor.tokenizer)].argmax()
        if token in llava.end_ids:
            break
        expected.append(int(token))
        ids["input_ids"] = torch.cat([ids["input_ids"], token[None, None]], dim=1)
        ids["attention_mask"] = torch.ones_like(ids["input_ids"])
    prompt = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is it?"}]
    answer = llava.sample([make_group(prompt, [], picture(1))], temperature=0, max_new_tokens=6)
    assert answer == [[processor.tokenizer.decode(expected, skip_special_tokens=True)]] and expected


def test_placeholders_are_never_said_and_end_tokens_end(llava_path, items):
    llava = load_policy(llava_path)
    image = llava.tokenizer.convert_tokens_to_ids("<image>")
    assert image in llava.never and not set(llava.never) & set(llava.end_ids)
    said = llava.tokenizer.convert_tokens_to_ids("b")
    with (
        torch.no_grad()
    ):  # a model that wants to say nothing but "<image>", then what fills the embedding up, then "b"
        head = llava.model.get_output_embeddings().weight
        head.zero_()
        llava.model.get_output_embeddings().register_forward_hook(
            lambda _, __, out: (
                out.index_fill(-1, torch.tensor([image]), 90.0)
                .index_fill(-1, torch.tensor([len(head) - 1]), 80.0)
                .index_fill(-1, torch.tensor([said]), 70.0)
            )
        )
    assert llava.sample(items, temperature=0, max_new_tokens=3) == [["bbb"]] * 5
    assert llava.sample(items[:1], 2, max_new_tokens=3, top_k=1) == [["bbb"] * 2]
    llava.end_ids.append(said)
    assert llava.sample(items[:1], temperature=0, max_new_tokens=3) == [[""]]


def test_what_is_done_and_the_shares(llava, items):
    whole = dict(enumerate(llava.sample(items, 2, max_new_tokens=4)))
    groups, sampling = as_groups(items), SamplingOptions(2, max_new_tokens=4, batch_size=2)
    shares = [list(llava.sample_batches(groups, sampling, share=(rank, 2))) for rank in (0, 1)]
    assert [len(share) for share in shares] == [2, 1]
    assert {i: own for share in shares for batch in share for i, own in zip(*batch, strict=True)} == whole
    first = shares[0][0][0]
    rest = [i for batch, _ in llava.sample_batches(groups, sampling, done=first) for i in batch]
    assert sorted([*rest, *first]) == [0, 1, 2, 3, 4] and len(rest) == 3


def test_an_adapter_of_it(llava_path, llava, items, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(llava_path)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(tmp_path)
    answers = load_policy(tmp_path).sample(items, temperature=0, max_new_tokens=8)
    assert answers != llava.sample(items, temperature=0, max_new_tokens=8) and all(own[0] for own in answers)


def test_mistakes_are_told(llava_path, llava, items):
    with pytest.raises(OptionError, match="share is .*expected .rank, world."):
        next(llava.sample_batches(as_groups(items), SamplingOptions(), share=(2, 2)))
    spoken = make_group("a", [], picture(1), where="q.jsonl, line 3")
    spoken.prompt[0]["content"][-1]["text"] = "what is <image>?"
    with pytest.raises(DataError, match="q.jsonl, line 3: the text holds '<image>'"):
        llava.sample([spoken])
    strict = load_policy(llava_path)
    strict.processor.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(DataError, match="q.jsonl, line 4: .*System role not supported"):
        strict.sample([make_group("a", [], where="q.jsonl, line 4")])
