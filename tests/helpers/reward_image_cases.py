"""Cases of TRL's RewardTrainer beside ours, on vision-language models, which TRL's does not take."""

import transformers
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoTokenizer, BitsAndBytesConfig
from trl import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference

from rs_rlhf import ScoreModel, VisionRewardConfig

from .reward_cases import BEST, EVALUATED, case, rows, sign_of, tokenized

# What TRL's trainer does not do: vision-language models. A new head ends in softplus; the texts are laid out as chats.

NO_VLM = "fails: no such classifier"
SCORELESS = "fails: the model gives no logits"


@case("a Qwen2-VL by name, images", NO_VLM, "works")
def vlm_by_name(given):
    return given.vision()


@case("a plain `RewardConfig`, images", NO_VLM, "works")
def plain_config(given):
    return given.vision(RewardConfig)


@case("rows longer than the `max_length` of a plain `RewardConfig`, images", NO_VLM, "works")
def long_images(given):
    data = Dataset.from_list([*given.pictured(), given.pictured(1)[0] | {"chosen": "water " * 200}])
    return given.vision(RewardConfig, {"max_length": 100}, train_dataset=data)


@case("`max_length` below every row, images", NO_VLM, "refuses: no row is left")
def all_long(given):
    return given.vision(RewardConfig, {"max_length": 8})


@case("a loaded causal VLM", "fails: one score is needed", "works")
def loaded_vlm(given):
    return given.vision(model=AutoModelForImageTextToText.from_pretrained(given.vlm, dtype="float32"))


@case("a loaded `ScoreModel`, with a tokenizer", SCORELESS, "works")
def loaded_score_model(given):
    return given.vision(model=ScoreModel.from_pretrained(given.vlm), processing_class=tokenizer(given))


def tokenizer(given):
    return AutoTokenizer.from_pretrained(given.vlm)


@case("a tokenizer as `processing_class`, images", NO_VLM, "works")
def vlm_tokenizer(given):
    return given.vision(processing_class=tokenizer(given))


@case("a Qwen2-VL, text alone, plain or conversations", NO_VLM, "works")
def vlm_text(given):
    return given.vision(train_dataset=rows(4, form="conversational"), args=given.args())


@case("integer columns `id`, `source`, `kind`, `where`, `score`, `row`, images", NO_VLM, "works")
def labels(given):
    return given.vision(train_dataset=given.pictured(id=1, source=2, kind=3, where=4, score=5, row=6))


@case("columns `id`, `source`, `kind` of dicts and lists, images", NO_VLM, "works")
def odd_labels(given):
    return given.vision(
        configured=EVALUATED,
        train_dataset=given.pictured(id=[1], source={"name": "a"}, kind=[{"b": 1}]),
        eval_dataset=given.pictured(5, source={"name": "a"}, kind=1.5),
    )


@case("rows of null images among others", NO_VLM, "works")
def some_images(given):
    data = given.pictured()
    return given.vision(
        train_dataset=data.map(lambda row, i: {"image": row["image"] if i % 2 else None}, with_indices=True)
    )


@case("`margin`, `center_rewards_coefficient`, `pad_to_multiple_of`, images", NO_VLM, "works")
def vlm_options(given):
    options = {"center_rewards_coefficient": 0.1, "pad_to_multiple_of": 32}
    return given.vision(RewardConfig, options, train_dataset=given.pictured(margin=0.5))


@case("a stream of images to evaluate on, beside stored training data", NO_VLM, "works")
def image_stream(given):
    return given.vision(configured=EVALUATED, eval_dataset=given.pictured(5).to_iterable_dataset())


@case("a stream of images to train on, and stored evaluation data", NO_VLM, "works")
def image_stream_training(given):
    data = given.pictured().to_iterable_dataset()
    return given.vision(configured=EVALUATED, train_dataset=data, eval_dataset=given.pictured(5))


@case("several evaluation sets (a `dict`), one of them a stream, images", NO_VLM, "works")
def image_sets(given):
    sets = {"a": given.pictured(5), "b": given.pictured(3).to_iterable_dataset(), "c": rows(3)}
    return given.vision(configured=EVALUATED, eval_dataset=sets)


@case("`metric_for_best_model='eval_accuracy'` with `load_best_model_at_end`, images", NO_VLM, "works")
def best_vlm(given):
    return given.vision(configured=BEST, eval_dataset=given.pictured(5))


@case("`compute_metrics`, images: predictions (rows, completions)", NO_VLM, "works")
def vlm_metrics(given):
    return given.vision(configured=EVALUATED, eval_dataset=given.pictured(5), compute_metrics=sign_of)


@case("`LoraConfig(task_type='SEQ_CLS')`, images", NO_VLM, "works")
def vlm_lora(given):
    return given.vision(peft_config=LoraConfig(task_type="SEQ_CLS"))


@case("`LoraConfig(modules_to_save=['score'])`, images: the score model's head", NO_VLM, "works")
def vlm_lora_head(given):
    lora = LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], target_modules="all-linear")
    return given.vision(model=AutoModelForImageTextToText.from_pretrained(given.vlm), peft_config=lora)


@case("a `PeftModel` of a `ScoreModel` with task `SEQ_CLS`", SCORELESS, "works")
def vlm_adapter(given):
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["reward_head"])
    model = get_peft_model(ScoreModel.from_pretrained(given.vlm), lora)
    return given.vision(model=model, processing_class=tokenizer(given))


@case("a `PeftModel` of a causal VLM", "fails: one score is needed", "refuses: give the model without its adapter")
def causal_adapter(given):
    model = AutoModelForImageTextToText.from_pretrained(given.vlm)
    return given.vision(model=get_peft_model(model, LoraConfig(target_modules=["q_proj"])))


@case("prompt tuning of a VLM", NO_VLM, "refuses: the layout is ours")
def prompt_tuning(given):
    return given.vision(peft_config=PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))


@case("token ids for a VLM", NO_VLM, "refuses: texts are laid out by the model's processor")
def vlm_token_ids(given):
    return given.vision(train_dataset=tokenized(given, "ids"))


@case("TRL's `data_collator` for a VLM", NO_VLM, "refuses: it takes token ids")
def vlm_collator(given):
    return given.vision(data_collator=DataCollatorForPreference(pad_token_id=5))


@case("columns `tools` and `chat_template_kwargs` for a VLM", NO_VLM, "refuses: they are not read")
def vlm_tools(given):
    return given.vision(train_dataset=given.pictured(tools='[{"name": "f"}]'))


@case("`quantization_config` without bitsandbytes, images", NO_VLM, "refuses: bitsandbytes is to be installed")
def vlm_quantized(given):
    return given.vision(quantization_config=BitsAndBytesConfig(load_in_8bit=True))


@case("a VLM that takes no image features", NO_VLM, "refuses: names the family")
def other_family(given):
    path = str(given.folder.with_name("mllama"))
    config = transformers.MllamaConfig()
    config.architectures = ["MllamaForConditionalGeneration"]
    config.save_pretrained(path)
    return given.vision(model=path)


@case(
    "an option of score models (`output_activation`, …) beside a text classifier", "works", "refuses: names the option"
)
def misplaced_option(given):
    return given.text(args=given.args(VisionRewardConfig, output_activation="identity"))
