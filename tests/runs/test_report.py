"""The page of a run: what it says, and in a real browser that it draws, answers, stays inert and asks no network."""

import json
import re
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from helpers import picture

from rs_rlhf.cli import main as cli
from rs_rlhf.errors import DataError
from rs_rlhf.runs.charts.metrics import is_share
from rs_rlhf.runs.record import KEY, model_files_hash
from rs_rlhf.runs.report import COMPARED, compare, page_data, place, read_curves, trend, write_report
from rs_rlhf.runs.report_tables import IMAGE_BYTES, ROWS, STEPS, TEXT, Images, spread
from rs_rlhf.runs.tables import thumbnail, write_table
from rs_rlhf.trainers.audit.rollout_audit import TYPES

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> & \u2028 @@DATA@@ \\1"


def write_state(run, log, **more):
    run.mkdir(parents=True, exist_ok=True)
    state = {"global_step": log[-1]["step"] if log else 0, "max_steps": 60, "epoch": 0.5, "log_history": log, **more}
    (run / "trainer_state.json").write_text(json.dumps(state))
    return run


def hacked_log():
    """A run whose reward rises while its answers get worse."""
    log = []
    for step in range(5, 61, 5):
        log.append(
            {
                "step": step,
                "loss": 1 / step,
                "reward": step / 10,
                "audit/accuracy": 0.8 - step / 100,
                "rewards/score_reward/mean": step / 10,
                "clip_ratio/low": 0.0,
                "kl": float("nan"),
            }
        )
    for step in (20, 40, 60):
        log.append(
            {
                "step": step,
                "eval_loss": 2 / step,
                "eval_score/greedy_mean": step / 5,
                "eval_audit/greedy_accuracy": 0.7 - step / 200,
                "eval_runtime": 2.0,
            }
        )
    return [*log, {"step": 60, "train_runtime": 3725.2, "train_loss": 0.1, "total_flos": 0.0}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = write_state(tmp_path_factory.mktemp("runs") / "a <run>", hacked_log())
    for step in (20, 40, 60):
        rows = [
            {
                "step": step,
                "prompt": f"Prompt {i}?",
                "completion": f"answer {i} at {step}",
                "solution": f"class {i}",
                "score": i + step / 10,
                "reward": None,
                "correct": i % 2 == 0,
                "image": thumbnail(picture(i)),
            }
            for i in range(3)
        ]
        write_table(rows, run / "samples" / f"eval_{step:06d}.parquet", TYPES, "k", [])
        rows = [{**row, "completion": f"rollout {row['completion']}", "reward": step * 1.0} for row in rows]
        rows[0]["completion"] = HOSTILE
        rows[1] |= {"image": None, "score": None, "correct": None, "solution": None}
        write_table(rows, run / "rollouts" / f"rollouts_{step:06d}.parquet", TYPES, "k", [])
    messages = [[{"role": "assistant", "content": "from TRL"}]]
    trl = {"step": [60], "prompt": ["p"], "completion": messages, "score_reward": [0.5], "advantage": [-1.25]}
    (run / "completions").mkdir()
    pyarrow.parquet.write_table(pyarrow.table(trl), run / "completions" / "completions_00060.parquet")
    tasks = {"made-up": {"n": 40, "accuracy": 0.25, "interval": [0.14, 0.4]}, HOSTILE: {"n": 3}}
    for name in ("before", "after"):
        (run / "eval" / name).mkdir(parents=True)
        (run / "eval" / name / "results.json").write_text(json.dumps({"tasks": tasks}))
    curve = [{"n": n, "accuracy": n / 10, "interval": [0.0, 0.9]} for n in (1, 2, 4)]
    best = {
        "task": "made-up",
        "questions": 40,
        "sizes": [1, 2, 4],
        "pooled": {"methods": {"greedy": curve, "score": curve}},
    }
    (run / "eval" / "before" / "best_of_n.json").write_text(json.dumps(best))
    (run / "README.md").write_text("---\nbase_model: org/a-vlm\n---\n- TRL: 1.16.0\n- Pytorch: 2.14.1\n")
    (run / "config.json").write_text('{"architectures": ["ScoreModel"], "transformers_version": "5.23.0"}')
    return run


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "deep" / "report.html"
    return path, write_report(run, path)


def test_the_command_writes_beside_the_run_and_warns(run, capsys, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert f"Report -> {tmp_path / 'run' / 'report.html'}" in out and (tmp_path / "run" / "report.html").is_file()
    assert (
        "Warning: Sampled answers in training: reward rose from 1 to 5.5 while audit/accuracy fell from 70.0% to "
        in out
    )


def test_what_the_page_holds(page, run):
    path, data = page
    facts = dict(data["facts"])
    assert facts["Steps"] == "60 of 60" and facts["Training time"] == "1 h 2 min 5 s" and facts["Model"] == "org/a-vlm"
    assert facts["Versions"] == "TRL 1.16.0, Pytorch 2.14.1, Transformers 5.23.0"
    charts = {
        chart["label"].split(":")[0]: chart for group in data["groups"] for chart in group["charts"] + group["still"]
    }
    assert set(charts) == {
        "loss",
        "reward",
        "audit/accuracy",
        "rewards/score_reward/mean",
        "clip_ratio/low",
        "kl",
        "score/greedy_mean",
        "audit/greedy_accuracy",
        "eval_runtime",
    }
    assert charts["kl"]["curves"][0]["points"] == [] and charts["kl"]["broken"] == "not finite at 12 steps"
    assert charts["loss"]["curves"][1] == {
        "name": "evaluation",
        "points": [[20, 0.1], [40, 0.05], [60, 0.0333333]],
        "share": False,
        "smooth": False,
    }
    assert ">100%<" in charts["audit/accuracy"]["svg"] and charts["audit/accuracy"]["curves"][0]["share"]
    assert [one["label"].split(":")[0] for one in data["headline"]] == [COMPARED[0][0], COMPARED[2][0]]
    still = [chart["label"].split(":")[0] for group in data["groups"] for chart in group["still"]]
    assert set(still) == {"clip_ratio/low", "eval_runtime"}
    assert "-" not in "".join(re.findall(r">(-?[\d.]+)</text>", charts["clip_ratio/low"]["svg"]))  # no negative share
    assert len(data["images"]) == 3  # each thumbnail once, though it is in six tables
    assert {made["label"].split(" ·")[0] for made in data["histograms"]} == {"score", "reward"}
    text = path.read_text()
    assert "<title>a &lt;run&gt; – training report</title>" in text and "<script>window" not in text
    assert text.count("</script>") == 2 and not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


@pytest.mark.parametrize(
    "key, expected",
    [
        ("score/accuracy_kind/a", ("score", "score/accuracy_kind/a", "training")),
        ("eval_score/accuracy", ("score", "score/accuracy", "evaluation")),
        ("eval_rsvqa_lr_score/accuracy", ("score", "score/accuracy", "evaluation rsvqa_lr")),
        ("eval_rewards/score_reward/mean", ("reward", "rewards/score_reward/mean", "evaluation")),
        ("eval_reward_std", ("reward", "reward_std", "evaluation")),
        ("eval_loss", ("train", "loss", "evaluation")),
        ("eval_runtime", ("eval", "eval_runtime", "evaluation")),
        ("eval/exact", ("eval", "eval/exact", "evaluation")),
        ("curation/kept", ("curation", "curation/kept", "training")),
        ("bon/gain", ("bon", "bon/gain", "training")),
        ("completions/mean_length", ("train", "completions/mean_length", "training")),
    ],
)
def test_where_a_metric_is_shown(key, expected):
    assert place(key, ["loss"]) == expected


def test_of_how_many_rows_a_figure_is_makes_no_curve():
    entry = {"step": 3, "eval_score/accuracy": 0.5, "eval_score/n": 8, "eval_audit/greedy_n": 4, "eval_aid_n": 2}
    assert read_curves([entry, {"eval_loss": 1.0}]) == {"eval_score/accuracy": {3: 0.5}}


def test_the_warning_follows_the_numbers():
    up, down = {i: float(i) for i in range(8)}, {i: 0.9 - i / 10 for i in range(8)}
    text, parted = trend(up, down, "reward", "accuracy")
    assert parted and text.startswith("reward rose from 0.5 to 6.5 while accuracy fell from 85.0% to 25.0%")
    text, parted = trend(up, {i: i / 10 for i in range(8)}, "r", "a")
    assert (
        not parted
        and text
        == "r rose from 0.5 to 6.5 and a rose from 5.0% to 65.0% (mean of steps 0 to 1, then mean of steps 6 to 7)."
    )
    assert not trend(down, down, "r", "a")[1] and trend({1: 1.0}, {1: 1.0}, "r", "a") == ("", False)
    # Learnt first and unlearnt later: the fall from the best quarter counts, though the end is above the beginning.
    text, parted = trend(dict(enumerate([1.0, 2, 3, 4])), dict(enumerate([0.1, 0.6, 0.4, 0.3])), "r", "a")
    assert parted and "a fell from 60.0% to 30.0% (step 1, then step 3)" in text
    assert "no task accuracy" in compare({"reward": up})[2][0]
    alone = compare({"eval_score/margin": up, "eval_score/accuracy": up})
    assert alone[0][0][0] == "Held-out preference pairs" and alone[1:] == ([], [])


def test_runs_that_are_missing_empty_or_broken(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 1
    assert "no trainer_state.json" in capsys.readouterr().err
    with pytest.raises(DataError, match="has logged nothing yet"):
        write_report(write_state(tmp_path / "empty", []), tmp_path / "x.html")
    for damaged in (b'{"global_', b"\xff\x92", b"[]", b'{"log_history": 3}'):
        (tmp_path / "empty" / "trainer_state.json").write_bytes(damaged)
        with pytest.raises(DataError) as error:
            write_report(tmp_path / "empty", tmp_path / "x.html")
        assert error.value.where == str(tmp_path / "empty" / "trainer_state.json")
    assert not (tmp_path / "x.html").exists()
    live = tmp_path / "live" / "rollouts"  # no checkpoint yet, and a table that is being written
    write_table([{"step": 1, "completion": "c"}], live / "rollouts_000001.parquet", TYPES, "k", [])
    (live / "rollouts_000002.parquet").write_bytes(b"PAR1")
    notes = write_report(tmp_path / "live", tmp_path / "x.html")["notes"]
    assert "rollouts_000002.parquet cannot be read" in notes[0] and "no curves" in notes[1]


def test_caps(tmp_path):
    assert spread(range(1000), 5) == [0, 250, 500, 749, 999] and spread([1, 2], 5) == [1, 2]
    for step in range(STEPS + 5):
        rows = [{"step": step, "completion": "x" * (TEXT + 1)}] * (ROWS + 1 if step == 0 else 1)
        write_table(rows, tmp_path / "run" / "rollouts" / f"rollouts_{step:06d}.parquet", TYPES, "k", [])
    table = write_report(tmp_path / "run", tmp_path / "x.html")["tables"][0]
    assert len(table["steps"]) == STEPS and table["steps"][-1]["step"] == STEPS + 4
    assert len(table["steps"][0]["rows"]) == ROWS and table["steps"][0]["rows"][0]["completion"].endswith("x … (cut)")
    images = Images()
    assert images.add({"bytes": b"\xff\xd8" + b"0" * (IMAGE_BYTES - 2)}) == 0
    assert images.add({"bytes": b"\xff\xd8 more"}) is None and images.left_out == 1
    assert images.add({"bytes": b"<svg onload=..>"}) is None and images.add({"path": "x"}) is None


# In a browser


def wait(browser, script):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 10).until(lambda it: it.execute_script(f"return {script}"))


def opened(browser, path, width=1200):
    """Opens the page; returns what was requested for it."""
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(Path(path).as_uri())
    wait(browser, "document.querySelectorAll('section').length > 0 && [...document.images].every(i => i.complete)")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def test_the_page_draws_and_asks_nothing_of_the_network(browser, page):
    path, data = page
    urls = opened(browser, path)
    assert path.as_uri() in urls and all(url == path.as_uri() or url.startswith("data:") for url in urls), urls
    assert browser.get_log("browser") == []
    assert wait(browser, "document.images.length") == 3 + 2
    assert browser.execute_script("return [...document.images].every(i => i.naturalWidth > 0 && i.alt)")
    drawn = (
        "return [...document.querySelectorAll('figure.chart .mark-line.role-mark path')]"
        ".filter(p => p.getTotalLength() > 20).length"
    )
    assert browser.execute_script(drawn) >= 4 + 6
    cells = "return document.querySelectorAll('#histograms .mark-rect.role-mark path').length"
    assert browser.execute_script(cells) >= 3 * 3
    labels = browser.execute_script("return [...document.querySelectorAll('figure.chart svg')].map(s => s.ariaLabel)")
    assert len(labels) == 2 + 1 + 9 + 3 and all(labels)
    warning = browser.execute_script("return document.querySelector('.warning').textContent")
    assert (
        "eval_score/greedy_mean rose from 4 to 12 while eval_audit/greedy_accuracy fell from 60.0% to 40.0%" in warning
    )
    assert "not finite at 12 steps" in browser.execute_script("return document.body.textContent")


def test_the_page_shows_the_evaluations_below_the_run(browser, page):
    opened(browser, page[0])
    lines = "[...document.querySelectorAll('#evaluations-table tbody tr')]"
    rows = browser.execute_script(f"return {lines}.map(row => [...row.cells].map(cell => cell.textContent))")
    assert rows[0] == ["made-up", "after", "40", "25.0%", "14.0% – 40.0%"] and rows[1][3:] == ["–", "–"]
    assert rows[-1] == ["made-up", "before: score, n = 4", "40", "40.0%", "0.0% – 90.0%"] and len(rows) == 6
    assert rows[-2][1] == "before: greedy"


def test_text_of_a_run_is_inert(browser, page):
    opened(browser, page[0])
    assert browser.execute_script("return window.hacked === undefined && !document.querySelector('img[src=x]')")
    assert HOSTILE in browser.execute_script(
        "return document.querySelector('.table .words').parentNode.parentNode.textContent"
    )


def test_hover_and_keys_tell_step_and_value(browser, page):
    from selenium.webdriver import ActionChains, Keys

    opened(browser, page[0])
    svg = browser.find_elements("css selector", "#headline .charts svg")[1]
    tip = "document.getElementById('tip')"
    first = svg.find_element("css selector", ".mark-symbol.role-mark path")
    ActionChains(browser).move_to_element(first).perform()
    assert wait(browser, f"!{tip}.hidden && {tip}.textContent") == (
        "step 5\nreward (left axis): 0.5\naudit/accuracy (right axis): 75%"
    )
    browser.execute_script("arguments[0].focus()", svg)
    svg.send_keys(Keys.END)
    assert "step 60\nreward (left axis): 6" in browser.execute_script(f"return {tip}.textContent")
    svg.send_keys(Keys.ARROW_LEFT)
    assert "step 55\n" in browser.execute_script(f"return {tip}.textContent")
    svg.send_keys(Keys.ESCAPE)
    assert browser.execute_script(f"return {tip}.hidden")
    cell = browser.find_element("css selector", "#histograms .mark-rect.role-mark path")
    ActionChains(browser).move_to_element(cell).perform()
    assert re.fullmatch(r"step 20\nscore \S+ to \S+: \d of 3", browser.execute_script(f"return {tip}.textContent"))


def test_smoothing_moves_the_curve_of_training_alone_and_a_chart_is_saved(browser, page):
    opened(browser, page[0])
    script = """const figure = document.querySelector('#metrics-train [aria-label^=loss]').closest('figure');
        const slider = document.getElementById('smoothing');
        const seen = () => figure.paths.map(p => vertices(p).map(v => v[1]));
        const before = seen();
        slider.value = 0.5; slider.oninput();
        const after = seen();
        slider.value = 0; slider.oninput();
        return [figure.curves.map(c => c.name), before, after, seen()]"""
    names, before, after, again = browser.execute_script(script)
    assert names == ["training", "evaluation"] and before == again and before[1] == after[1]
    assert after[0][1] == pytest.approx((0.5 * before[0][0] + before[0][1]) / 1.5)
    saved = """const real = URL.createObjectURL; let blob; URL.createObjectURL = (b) => { blob = b; return real(b); };
        document.querySelector('#metrics-train .save[aria-label*=": loss"]').click();
        URL.createObjectURL = real; return blob.text()"""
    text = browser.execute_script(saved)
    assert text.startswith("<svg") and "var(--" not in text and "loss" in text


def test_a_curve_of_one_point_is_told(browser, tmp_path):
    from selenium.webdriver import Keys

    write_report(
        write_state(tmp_path / "run", [{"step": 7, "loss": 0.5}, {"step": 7, "lr": 2.0}]), tmp_path / "x.html"
    )
    opened(browser, tmp_path / "x.html")
    browser.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    svg = browser.find_element("css selector", "svg[aria-label^=loss]")
    browser.execute_script("arguments[0].focus()", svg)
    svg.send_keys(Keys.END)
    assert browser.execute_script("return document.getElementById('tip').textContent") == "step 7\ntraining: 0.5"
    assert browser.get_log("browser") == []


def test_a_picture_is_enlarged_and_closed(browser, page):
    opened(browser, page[0])
    browser.execute_script("document.querySelector('main img').click()")
    size = wait(browser, "document.querySelector('dialog[open] img')?.getBoundingClientRect().width")
    assert size > 3 * 112
    browser.find_element("css selector", "dialog img").click()
    assert wait(browser, "!document.querySelector('dialog')")


def test_several_runs_share_the_charts(tmp_path, browser):
    runs = []
    for name, last in (("a", 0.25), ("b", 0.75)):
        log = [{"step": step, "loss": 1 / step, "score/accuracy": last * step / 4} for step in (1, 2, 4)]
        settings = {"seed": 3, "model": f"model {name}", "data": "0123abcd"}
        stamp = {KEY: {"id": name, "parts": [[name, 0]], "settings": settings}}
        log.append({"step": 4, "eval_loss": last})
        runs.append(write_state(tmp_path / name / "run", log, stateful_callbacks=stamp))
        (runs[-1] / "rs_rlhf_run.json").write_text(
            json.dumps({"id": name, "parts": [[name, 0]], "settings": settings})
        )
    data = write_report(runs, tmp_path / "both.html")
    loss = next(chart for group in data["groups"] for chart in group["charts"] if chart["label"].startswith("loss"))
    names = ["a/run, training", "a/run, evaluation", "b/run, training", "b/run, evaluation"]
    assert [one["name"] for one in loss["curves"]] == names
    table = {name: (values, differs) for name, values, differs in data["configuration"]}
    assert table["model"] == (["model a", "model b"], True) and table["data hash"] == (["0123abcd"] * 2, False)
    opened(browser, tmp_path / "both.html", width=400)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    marked = "[...document.querySelectorAll('#configuration tr.differs th')].map(th => th.textContent)"
    assert "model" in browser.execute_script(f"return {marked}") and browser.get_log("browser") == []
    with pytest.raises(DataError):
        write_report([runs[0], runs[0]], tmp_path / "x.html")


@pytest.mark.parametrize(
    "name, share",
    [
        ("score/accuracy_kind/wrong", True),
        ("eval_exact_match", True),
        ("score/ties", True),
        ("reward/failed_fraction", True),
        ("frac_reward_zero_std", True),
        ("rewards/accuracies", True),
        ("score/margin", False),
        ("rewards/score_reward/mean", False),
        ("properties", False),
        ("grad_norm", False),
    ],
)
def test_which_metrics_are_shares(name, share):
    assert is_share(name) == share


def test_the_step_selector_and_one_prompt_over_time(browser, page):
    from selenium.webdriver.support.ui import Select

    opened(browser, page[0])
    table = browser.find_element("css selector", ".table")
    assert "rollout answer 2 at 60" in table.text and "at 20" not in table.text  # the latest first
    Select(table.find_element("tag name", "select")).select_by_visible_text("step 20")
    assert "rollout answer 2 at 20" in table.text and "at 60" not in table.text
    table.find_element("xpath", ".//button[2]").click()
    assert "rollout answer 2 at 40" in table.text
    assert "from TRL" in browser.find_elements("css selector", ".table")[1].text
    follow = browser.find_element("css selector", ".follow")
    assert len(follow.find_elements("css selector", "tbody tr")) == 3
    row = follow.find_elements("css selector", "tbody tr")[1].text
    assert all(f"answer 1 at {step}" in row for step in (20, 40, 60)) and "answer 0" not in row
    Select(follow.find_element("tag name", "select")).select_by_visible_text("2: class 1")
    assert [f"answer 1 at {step}" in follow.text for step in (20, 40, 60)] == [True] * 3
    assert "answer 0" not in follow.text and "solution: class 1" in follow.text
    assert wait(browser, "document.querySelector('.follow svg .mark-line path').getTotalLength() > 20")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_fits_in_both_schemes(browser, page, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    opened(browser, page[0], width=400)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    colours = browser.execute_script(
        "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        ".map(c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 3)"
    )
    assert abs(colours[0] - colours[1]) > 150 and (colours[0] > colours[1]) == (scheme == "light")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_evaluations_of_weights_that_another_run_has_replaced_are_left_out(tmp_path):
    run = write_state(tmp_path / "run", [{"step": 2, "loss": 0.5}])
    base, weights = tmp_path / "base", run / "model.safetensors"
    base.mkdir()
    for path in (weights, base / "model.safetensors"):
        path.write_bytes(b"first")
    for name, model in (("base", base), ("trained", run)):
        settings = {"model": str(model), "model_hash": model_files_hash(model)}
        tasks = {"aid": {"n": 4, "accuracy": 0.5, "interval": [0.1, 0.9], "settings": settings}}
        (run / "eval" / name).mkdir(parents=True)
        (run / "eval" / name / "results.json").write_text(json.dumps({"tasks": tasks}))
    (run / "report.html").write_text("written beside the weights, it changes nothing")
    assert [row["what"] for row in page_data([run])["evaluations"]] == ["base", "trained"]
    weights.write_bytes(b"second")
    page = page_data([run])
    assert [row["what"] for row in page["evaluations"]] == ["base"]
    assert any(note.startswith("aid in eval/trained is left out") for note in page["notes"])
