"""TRL's RewardTrainer and ours under the same conditions: what a script for TRL may expect of our class.

The cases are the table of docs/trl_conformance.md. Both trainers get the same arguments, made anew; a case of "the
same losses" compares every figure that TRL's logs.
"""

import inspect
import math
import shutil
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict
from helpers import picture
from helpers.conformance import Case, documented, table
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    TrainerCallback,
    set_seed,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from rs_rlhf import ScoreModel, VisionRewardConfig, VisionRewardTrainer
from rs_rlhf.errors import RSRLHFError
from rs_rlhf.models.tiny_vlm import CHAT_TEMPLATE, build_tokenizer

CASES = {}
QUICK = ("text_classifier", "vlm_by_name", "labels")  # in the default tier
CLOCKS = ("runtime", "per_second", "total_flos", "step_time", "memory")


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


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Paths of a tiny causal language model and of a tiny text classifier with dropout."""
    folder, tokenizer = tmp_path_factory.mktemp("text"), build_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 64, "vocab_size": len(tokenizer), "attention_dropout": 0.3, "num_labels": 1}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    for name in ("CausalLM", "SequenceClassification"):
        torch.manual_seed(1)
        config = transformers.Qwen2Config(**sizes, **ids)
        getattr(transformers, f"Qwen2For{name}")(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return str(folder / "CausalLM"), str(folder / "SequenceClassification")


@pytest.fixture
def given(models, tiny_vlm, tmp_path):
    """The place of a run, emptied for each."""
    images = []
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.png")
        images.append(str(tmp_path / f"{i}.png"))
    return Given(*models, tiny_vlm, images, tmp_path / "out")


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


@case("a VLM of another family", NO_VLM, "refuses: names the families")
def other_family(given):
    path = str(given.folder.with_name("llava"))
    config = transformers.LlavaConfig()
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(path)
    return given.vision(model=path)


@case(
    "an option of score models (`output_activation`, …) beside a text classifier", "works", "refuses: names the option"
)
def misplaced_option(given):
    return given.text(args=given.args(VisionRewardConfig, output_activation="identity"))


def run(trainer_class, arguments):
    """Trains, and returns the log, or the exception."""
    try:
        resume = arguments.pop("resume_from_checkpoint", None)
        trainer = trainer_class(**arguments)
        trainer.train(resume_from_checkpoint=resume)
    except Exception as error:  # whatever TRL's raises
        return error
    return trainer.state.log_history


def figures(log):
    """The figures of a log that do not depend on the clock."""
    return [
        {name: value for name, value in entry.items() if not any(word in name for word in CLOCKS)} for entry in log
    ]


def marked(name):
    return pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("name", map(marked, CASES))
@pytest.mark.filterwarnings("ignore")
def test_a_script_for_trl_gives_what_the_table_says(name, given):
    expected, make = CASES[name]
    if "without bitsandbytes" in expected.feature and find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is here")
    stock = run(RewardTrainer, make(given))
    if expected.stock == "works":
        assert isinstance(stock, list), stock
    else:
        assert isinstance(stock, Exception)
    arguments = make(given)
    watched = {key: arguments.get(key) for key in ("args", "peft_config")}
    before = deepcopy(watched)
    ours = run(VisionRewardTrainer, arguments)
    assert watched == before  # the caller's objects are never changed
    if expected.ours == "the same error":
        assert (type(ours), str(ours)) == (type(stock), str(stock))
    elif expected.ours.startswith("refuses"):
        assert isinstance(ours, RSRLHFError) and (ours.key or ours.where), ours
    else:
        assert isinstance(ours, list), ours
        assert all(math.isfinite(entry["loss"]) for entry in ours if "loss" in entry)
        names = {"accuracy", "margin", "min_reward", "mean_reward", "max_reward", "num_tokens"}
        assert names <= set(ours[0]) or {f"eval_{one}" for one in names} <= set(ours[0])
    if expected.ours == "the same losses":
        for entry, other in zip(figures(stock), figures(ours), strict=True):
            assert {key: other.get(key) for key in entry} == pytest.approx(entry, abs=1e-6)


def test_the_table_is_true():
    assert documented("VisionRewardTrainer") == table(case for case, _ in CASES.values())


def test_the_arguments_are_trl_s_in_their_order():
    assert list(inspect.signature(VisionRewardTrainer).parameters) == list(inspect.signature(RewardTrainer).parameters)


class Classifier(ScoreModel):
    """A score model as TRL's trainer takes it."""

    def forward(self, input_ids, attention_mask, **_):
        """Returns the scores as logits."""
        return SequenceClassifierOutput(logits=super().forward(input_ids, attention_mask).scores[:, None])


@pytest.mark.filterwarnings("ignore")
def test_a_score_model_trains_as_trl_trains_a_classifier(given):
    """The group layout, its loss and its figures are TRL's, for conversations without images."""
    logs = []
    for cls, trainer in ((Classifier, RewardTrainer), (ScoreModel, VisionRewardTrainer)):
        set_seed(0)
        model = ScoreModel.from_pretrained(given.vlm, output_activation="identity")
        model.__class__ = cls
        model.reward_head.weight.data.mul_(20)
        args = given.args(**EVALUATED, center_rewards_coefficient=0.01, learning_rate=1e-4)
        data = rows(form="conversational", margin=0.3)
        own = {"processing_class": tokenizer(given), "train_dataset": data, "eval_dataset": data.select(range(5))}
        logs.append(run(trainer, {"model": model, "args": args, **own}))
    for stock, ours in zip(*map(figures, logs), strict=True):
        assert {key: ours.get(key) for key in stock} == pytest.approx(stock, rel=1e-4, abs=2e-5)
