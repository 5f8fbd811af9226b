"""Cases of TRL's RewardTrainer beside ours, on text: each function returns the trainer's arguments."""

import shutil
from dataclasses import dataclass

import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    TrainerCallback,
)
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from rs_rlhf import VisionRewardConfig
from rs_rlhf.models.tiny_vlm import CHAT_TEMPLATE

from .conformance import Case

CASES = {}


def case(feature, stock="works", ours="the same losses"):
    """Makes a function, which returns the trainer's arguments, a case of the table."""

    def added(function):
        CASES[function.__name__] = (Case(feature, stock, ours), function)
        return function

    return added


@dataclass
class Given:
    """What the cases are made of: paths of tiny models, images, and a folder."""

    lm: str
    classifier: str
    vlm: str
    images: list
    folder: object

    def args(self, cls=RewardConfig, **options):
        """A config for two steps on a CPU."""
        plain = {"bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none", "seed": 3}
        plain |= {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 2, "logging_steps": 1}
        plain |= {"max_steps": 2, "save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-3}
        return cls(str(self.folder), **(plain | options))

    def text(self, **options):
        """Arguments for a text classifier on explicit prompts."""
        return {"model": self.classifier, "args": self.args(), "train_dataset": rows()} | options

    def vision(self, cls=VisionRewardConfig, configured=None, **options):
        """Arguments for a VLM on images."""
        args = self.args(cls, **{"model_init_kwargs": {"dtype": "float32"}, **(configured or {})})
        return {"model": self.vlm, "args": args, "train_dataset": self.pictured()} | options

    def pictured(self, count=7, **columns):
        """Preference rows with an image each."""
        data = rows(count, **columns)
        return data.add_column("image", [self.images[i % len(self.images)] for i in range(count)])


def rows(count=7, form="explicit", **columns):
    """Preference rows of text alone; those of a `form`, with further columns of one value each."""
    data = []
    for i in range(count):
        prompt, chosen, rejected = f"what is seen {i} ?", f"a river number {i} .", "many trees " * (i % 3 + 1)
        if form.startswith("conversational"):
            prompt, chosen, rejected = turn("user", prompt), turn("assistant", chosen), turn("assistant", rejected)
        row = {"chosen": prompt + chosen, "rejected": prompt + rejected}
        if not form.endswith("implicit"):
            row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        data.append(row | columns)
    return Dataset.from_list(data)


def turn(role, text):
    """A conversation of one turn."""
    return [{"role": role, "content": text}]


def classifier(given, **options):
    """The loaded text classifier."""
    return AutoModelForSequenceClassification.from_pretrained(given.classifier, dtype="float32", **options)


# What TRL's trainer does, on text.


@case("a text classifier by name")
def text_classifier(given):
    return given.text()


@case("a causal language model by name")
def language_model(given):
    return given.text(model=given.lm)


@case("a loaded text classifier, with a tokenizer")
def loaded_classifier(given):
    return given.text(model=classifier(given), processing_class=AutoTokenizer.from_pretrained(given.classifier))


@case("`VisionRewardConfig` without any of our options, text")
def our_config(given):
    return given.text(args=given.args(VisionRewardConfig))


@case("plain text with the prompt in the completions")
def implicit(given):
    return given.text(train_dataset=rows(form="implicit"))


@case("conversations")
def conversations(given):
    return given.text(train_dataset=rows(form="conversational"))


@case("conversations with the prompt in the completions")
def implicit_conversations(given):
    return given.text(train_dataset=rows(form="conversational_implicit"))


def tokenized(given, suffix):
    tokenizer = AutoTokenizer.from_pretrained(given.classifier)
    columns = ("chosen", "rejected")
    return rows().map(
        lambda row: {f"{name}_{suffix}": tokenizer(row["prompt"] + row[name])["input_ids"] for name in columns},
        remove_columns=["prompt", *columns],
    )


@case("token ids (`chosen_ids`, `rejected_ids`)")
def token_ids(given):
    return given.text(train_dataset=tokenized(given, "ids"))


@case("token ids by their old names (`chosen_input_ids`)")
def old_token_ids(given):
    return given.text(train_dataset=tokenized(given, "input_ids"))


@case("a `margin` column")
def margins(given):
    return given.text(train_dataset=rows(margin=0.7))


@case("columns `tools` and `chat_template_kwargs`")
def template_columns(given):
    data = rows(form="conversational", tools='[{"name": "f"}]', chat_template_kwargs={"loud": True})
    tokenizer = AutoTokenizer.from_pretrained(given.classifier)
    tokenizer.chat_template = "{{ tools }}{{ loud }}" + CHAT_TEMPLATE
    return given.text(train_dataset=data, processing_class=tokenizer)


@case("integer columns `id`, `source`, `kind`, `where`, `score`, `row`, and `images` of null, text")
def text_labels(given):
    return given.text(train_dataset=rows(id=1, source=2, kind=3, where=4, score=5, row=6, images=None))


@case("rows longer than `max_length`, left out")
def long_rows(given):
    return given.text(args=given.args(max_length=26))


EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}


@case("evaluation data")
def evaluation(given):
    return given.text(args=given.args(**EVALUATED), eval_dataset=rows(5))


@case("a stream to train on")
def stream(given):
    return given.text(train_dataset=rows().to_iterable_dataset())


@case("a stream to evaluate on, beside stored training data")
def stream_evaluation(given):
    return given.text(args=given.args(**EVALUATED), eval_dataset=rows(5).to_iterable_dataset())


@case("a stream to train on, and stored evaluation data")
def stream_training(given):
    data = rows().to_iterable_dataset()
    return given.text(args=given.args(**EVALUATED), train_dataset=data, eval_dataset=rows(5))


@case("several evaluation sets (a `dict`), one of them a stream")
def evaluation_sets(given):
    sets = {"a": rows(5), "b": rows(3, form="implicit").to_iterable_dataset()}
    return given.text(args=given.args(**EVALUATED), eval_dataset=sets)


@case("several evaluation sets (a `DatasetDict`)")
def evaluation_dict(given):
    return given.text(args=given.args(**EVALUATED), eval_dataset=DatasetDict({"a": rows(5), "b": rows(3)}))


BEST = EVALUATED | {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}
BEST |= {"metric_for_best_model": "eval_accuracy", "max_steps": 3}


@case("`metric_for_best_model='eval_accuracy'` with `load_best_model_at_end`")
def best_model(given):
    return given.text(args=given.args(**BEST), eval_dataset=rows(5))


@case("`center_rewards_coefficient`")
def centred(given):
    return given.text(args=given.args(center_rewards_coefficient=0.1))


@case("`disable_dropout=False`")
def dropout(given):
    return given.text(args=given.args(disable_dropout=False))


@case("`pad_to_multiple_of`")
def padded(given):
    return given.text(args=given.args(pad_to_multiple_of=16))


@case("`gradient_checkpointing` and `gradient_accumulation_steps`")
def accumulation(given):
    return given.text(args=given.args(gradient_checkpointing=True, gradient_accumulation_steps=2))


@case("`eos_token`, and `chat_template_path` of a template")
def template(given):
    path = given.folder.with_suffix(".jinja")
    path.write_text("{{ '!' }}" + CHAT_TEMPLATE)
    args = given.args(eos_token="<|vision_end|>", chat_template_path=str(path))
    return given.text(args=args, train_dataset=rows(form="conversational"))


@case("`model_init_kwargs`")
def init_options(given):
    return given.text(args=given.args(model_init_kwargs={"dtype": "bfloat16", "attn_implementation": "eager"}))


@case("TRL's `data_collator`")
def collator(given):
    return given.text(data_collator=DataCollatorForPreference(pad_token_id=5))


def sign_of(prediction):
    return {"positive": float((prediction.predictions > 0).mean())}


@case("`compute_metrics` and `preprocess_logits_for_metrics`")
def metrics(given):
    more = {"compute_metrics": sign_of, "preprocess_logits_for_metrics": lambda logits, labels: logits}
    return given.text(args=given.args(**EVALUATED), eval_dataset=rows(5), **more)


class Shortened(TrainerCallback):
    """Ends a training after its first step."""

    def on_step_end(self, args, state, control, **kwargs):
        """Ends it."""
        control.should_training_stop = True


@case("`resume_from_checkpoint=True`")
def resumed(given):
    """The first steps are TRL's; what resumes is the trainer at test."""
    shutil.rmtree(given.folder, ignore_errors=True)  # the other trainer's steps
    saving = {"save_strategy": "steps", "save_steps": 1}
    RewardTrainer(**given.text(args=given.args(**saving))).train()
    return given.text(args=given.args(**saving, max_steps=3), resume_from_checkpoint=True)


@case("`callbacks`")
def callbacks(given):
    return given.text(callbacks=[Shortened()])


@case("`optimizers`")
def optimizers(given):
    model = classifier(given)
    return given.text(model=model, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None))


@case("`optimizer_cls_and_kwargs`")
def optimizer_class(given):
    return given.text(optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}))


@case("`LoraConfig(task_type='SEQ_CLS')`, text")
def text_lora(given):
    return given.text(peft_config=LoraConfig(task_type="SEQ_CLS"))


@case("`LoraConfig(modules_to_save=['score'])`, text")
def text_lora_head(given):
    return given.text(model=given.lm, peft_config=LoraConfig(modules_to_save=["score"], target_modules=["q_proj"]))


@case("a loaded `PeftModel`, text")
def text_adapter(given):
    return given.text(model=get_peft_model(classifier(given), LoraConfig(task_type="SEQ_CLS")))


@case("a `PeftModel` and `peft_config`", "fails: one adapter too many", "the same error")
def two_adapters(given):
    model = get_peft_model(classifier(given), LoraConfig(task_type="SEQ_CLS"))
    return given.text(model=model, peft_config=LoraConfig(task_type="SEQ_CLS"))


@case("a classifier of two classes", "fails: one score is needed", "the same error")
def two_classes(given):
    return given.text(model=classifier(given, num_labels=2, ignore_mismatched_sizes=True))


@case("no training data", "fails: they are required", "the same error")
def no_data(given):
    return given.text(train_dataset=None)


@case(
    "`quantization_config` without bitsandbytes, text",
    "fails: an import error",
    "refuses: bitsandbytes is to be installed",
)
def text_quantized(given):
    return given.text(quantization_config=BitsAndBytesConfig(load_in_8bit=True))
