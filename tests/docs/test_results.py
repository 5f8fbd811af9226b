"""The figures of README, guides and recipes' READMEs that are results are those of the results files."""

import json
import re
import statistics

import pytest
from helpers import ROOT

RECIPES = ROOT / "recipes"
WAYS = ("score", "majority", "random")


def read(name):
    return json.loads((RECIPES / name).read_text())


def words(path):
    return " ".join((ROOT / path).read_text(encoding="utf-8").replace("**", "").split())


def interval(share, ends):
    low, high = ends
    return f"{share:.1%} ({low:.1%} – {high:.1%})"


def mean_sd(values):
    return f"{statistics.mean(values):.1%} ± {statistics.stdev(values):.1%}"


def best_of_n():
    methods = read("aid-rsicd-tiny/results/best_of_n.json")["pooled"]["methods"]
    last = {way: methods[way][-1] for way in WAYS}
    assert {entry["n"] for entry in last.values()} == {16}
    return {way: interval(entry["accuracy"], entry["interval"]) for way, entry in last.items()}


def preferences(name):
    found = read(f"aid-rsicd-tiny/results/{name}.json")
    return interval(found["accuracy"], found["interval"])


def curation(arm):
    wanted = "full_steps" if arm == "full" else arm
    runs = read("aid-rsicd-curation/results/curation.json")["runs"]
    return mean_sd([run["zero-shot accuracy"] for run in runs if run["kind"] == "clip" and run["table_arm"] == wanted])


def right(arm, way):
    """The shares of right answers of an arm of the RL experiment, one for each seed."""
    found = read("aid-rsicd-curation/results/grpo.json")
    runs = [found["before"]["spoiled"]] if arm == "before" else [r["right"] for r in found["runs"] if r["arm"] == arm]
    return [run[way].count("1") / found["images"] for run in runs]


def tiny_grpo(run, way="greedy"):
    found = read("aid-rsicd-tiny/results/grpo.json")["runs"]
    return [one[way]["right"] / one[way]["answers"] for name, one in found.items() if run in name]


def row(path, start):
    (line,) = [line for line in words_by_line(path) if line.startswith(f"| {start}")]
    return line


def words_by_line(path):
    return (ROOT / path).read_text(encoding="utf-8").replace("**", "").splitlines()


def test_the_readme_s_table_states_the_measured_results():
    path, ways = "README.md", best_of_n()
    line = row(path, "best of 16 answers")
    assert f"| {ways['score']} | majority vote {ways['majority']}, one at random {ways['random']} |" in line
    line = row(path, "the better of two texts")
    assert (
        f"| {preferences('preferences')} | the same model without the images {preferences('preferences_blind')} |"
        in line
    )
    others = (
        f"all rows {curation('full')}, random 30% {curation('random')}, best by CLIP score {curation('clip_image')}"
    )
    assert f"| {curation('model_image')} | {others} |" in row(path, "CLIP zero-shot")
    line = row(path, "GRPO of a policy")
    assert f"| {mean_sd(right('grpo', 'greedy'))}: +" in line
    before, wrong, shuffled = right("before", "greedy")[0], right("wrong", "greedy"), right("shuffled", "greedy")
    others = f"more of the same labels {mean_sd(wrong)}, GRPO with another image {mean_sd(shuffled)}"
    assert f"| before {before:.1%}; {others} |" in line
    gain = re.search(r"\+[\d.]+ points \(\+[\d.]+ to \+[\d.]+\)", line)[0]
    table = read("aid-rsicd-curation/results/grpo.json")["table"]
    assert any(gain.replace(" points", "") in entry for entry in table)
    speed = json.loads((ROOT / "benchmarks" / "results" / "group_speed.json").read_text())["scoring"]["16"]["ratio"]
    assert f"| {speed:.1f}× as fast |" in row(path, "scoring 16 texts")


def test_the_readme_states_what_did_not_help():
    for way, sign in (("sampled", 1), ("greedy", -1)):
        (before,), after = tiny_grpo("policy2", way), tiny_grpo("grpo_seed", way)
        assert len(after) == 3 and sign * (statistics.mean(after) - before) > 0
        assert f"{way} {'answers' if sign > 0 else 'ones'} from {before:.1%} to {mean_sd(after)}" in words("README.md")
    plain, full = (float(curation(arm).partition("%")[0]) for arm in ("model", "full"))
    assert plain < full and "plain best 30%, which drops whole images, was no better than all rows" in words(
        "README.md"
    )


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (
            "docs/guides/best_of_n.md",
            "right for {score} of the images, a majority vote for {majority}, a random answer for {random}",
        ),
        (
            "docs/guides/grpo.md",
            "{grpo} right instead of {before}, its sampled answers {sampled} instead of {before_sampled}",
        ),
        (
            "docs/guides/curation.md",
            "names {model_image} of the classes after 30% chosen with every image, {full} after as many",
        ),
        (
            "docs/guides/curation.md",
            "{clip} after the CLIP score's best 30%, and {model} after the score model's plain best 30%",
        ),
        ("docs/performance.md", "| step | {step_groups:.2f} s | {step_rows:.2f} s | {step_ratio:.1f}× |"),
    ],
)
def test_a_guide_states_what_was_measured(path, sentence):
    ways = {way: text.split()[0] for way, text in best_of_n().items()}
    arms = {arm: curation(arm).split()[0] for arm in ("model", "model_image", "full", "clip")}
    step = json.loads((ROOT / "benchmarks" / "results" / "grpo_reward.json").read_text())
    speed = {f"step_{way}": step["ways"][way]["step"] for way in ("groups", "rows")} | {
        "step_ratio": step["ratios"]["step"]
    }
    rl = {"grpo": mean_sd(right("grpo", "greedy")), "sampled": f"{statistics.mean(right('grpo', 'sampled')):.1%}"}
    rl |= {"before": f"{right('before', 'greedy')[0]:.1%}", "before_sampled": f"{right('before', 'sampled')[0]:.1%}"}
    assert sentence.format(**ways, **arms, **speed, **rl) in words(path)


def test_the_recipes_readmes_state_the_measured_results():
    tiny, ways = words("recipes/aid-rsicd-tiny/README.md"), best_of_n()
    assert f"| {preferences('preferences')} | without images {preferences('preferences_blind')} |" in tiny
    assert f"| {ways['score']} | majority vote {ways['majority']} |" in tiny
    grpo, more, (before,) = tiny_grpo("grpo_seed"), tiny_grpo("more_sft"), tiny_grpo("policy2")
    assert f"| {mean_sd(grpo)} | before {before:.1%}, more labels for the time {mean_sd(more)} |" in tiny
    cut = words("recipes/aid-rsicd-curation/README.md")
    assert (
        f"{curation('model_image')} after the score model's best 30% with every image kept, {curation('full')} after"
        in cut
    )
    assert f"{curation('clip_image')} after the best by CLIP score" in cut
    assert f"from {right('before', 'greedy')[0]:.1%} to {mean_sd(right('grpo', 'greedy'))}, +" in cut


def box():
    """Figures of the box as the texts state them."""
    found = read("aid-rsicd/results/box.json")
    stated = {name: interval(found[name]["accuracy"], found[name]["interval"]) for name in found}
    stated |= {
        f"pairs_{kind}": interval(one["accuracy"], one["interval"]) for kind, one in found["pairs"]["by_kind"].items()
    }
    return stated | {"shuffled": f"{found['pairs']['shuffled']['accuracy']:.1%}"}


def test_the_card_of_the_box_and_the_readme_state_what_was_measured():
    figures, card = box(), words("reward_models/aid-rsicd-tiny/README.md")
    for what, name in (
        ("the right one of 30 classes scores highest", "choice"),
        ("the better of two texts scores higher", "pairs"),
        ("a caption of another class is the worse", "pairs_another_class"),
        ("a wrong class is the worse", "pairs_wrong_label"),
        ("a caption with a wrong attribute is the worse", "pairs_attribute"),
        ("a caption of another image of the class is the worse", "pairs_same_class"),
        ("a caption cut short is the worse", "pairs_truncated"),
        ("the better of two texts, with another image", "shuffled"),
        ("the better of two texts, drawn scenes", "drawn_pairs"),
        ("the policy's answer is right, greedy", "policy_greedy"),
        ("the policy's answer is right, sampled", "policy_sampled"),
    ):
        assert f"| {what} | {figures[name]} |" in card, what
    line = row("README.md", "the right one of 30 classes")
    assert f"| {figures['choice']} |" in line and f"which 1,000 taught, {figures['policy_greedy']} |" in line


def test_the_recipe_states_what_the_first_design_gave():
    found, text = read("aid-rsicd/results/first_design.json"), words("recipes/aid-rsicd/README.md")

    def mean(arm):
        return f"{statistics.mean(run['greedy'] for run in found['runs'][arm].values()):.1%}"

    def before(arm):
        return f"{statistics.mean(found['before'][place[0]]['greedy'] for place in found['runs'][arm]):.1%}"

    after = [mean(arm) for arm in ("RAFT, 1 round", "RAFT, 2 rounds", "RAFT, 3 rounds")]
    assert len(found["runs"]["RAFT, 3 rounds"]) == 5 and len(found["runs"]["GRPO"]) == 4
    assert f"five runs of RAFT the greedy answers went from {before('RAFT, 3 rounds')} to {after[0]}," in text
    assert f"{after[0]}, {after[1]} and {after[2]} right" in text
    assert f"four of GRPO from {before('GRPO')} to {mean('GRPO')}" in text
    shares = [f"{one['accuracy']:.1%}" for one in found["choice"].values()]
    assert f"{shares[0]}, {shares[1]} and {shares[2]} of the test images" in text


def test_readme_and_quickstart_state_what_the_demo_gave():
    found = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text())
    pairs = [f"{found['pairs'][when]['accuracy']:.1%}" for when in ("before", "after")]
    share = {entry["what"]: f"{entry['accuracy']:.1%}" for entry in found["policy"]}
    policy, after = share["base policy"], share["with GRPO"]
    best, majority = (share[f"best of n, base policy: {way}, n = 8"] for way in ("score", "majority"))
    readme, quickstart = words("README.md"), words("docs/quickstart.md")
    assert f"({pairs[0]} of held-out pairs before, {pairs[1]} after)" in readme
    assert f"names {policy} of the held-out scenes right, and {best} with the best of 8 answers" in readme
    assert f"{round(found['minutes'])} minutes on two CPU cores" in readme
    assert f"Seed 0 took {round(found['minutes'])} minutes" in quickstart
    assert f"from {pairs[0]} to {pairs[1]} of held-out pairs" in quickstart
    assert (
        f"names {policy} of the scenes right, {after} after GRPO, and {best} with the best of 8 answers" in quickstart
    )
    assert f"(majority vote {majority})" in quickstart
