"""The model card of the policy after a round: its training, the command of the rounds, and held-out figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ...runs.checkpoints import parsed_state
from ...runs.record import command_line, run_of
from ..model_card.card import write_model_card

CITATION = """\
@article{dong2023raft,
  title   = {{RAFT}: Reward rAnked FineTuning for Generative Foundation Model Alignment},
  author  = {Dong, Hanze and Xiong, Wei and Goyal, Deepanshu and Zhang, Yihan and Chow, Winnie and Pan, Rui and Diao, Shizhe and Zhang, Jipeng and Shum, Kashun and Zhang, Tong},
  journal = {Transactions on Machine Learning Research},
  year    = {2023},
  note    = {arXiv:2304.06767}
}"""  # noqa: E501


def write_round_card(
    policy: str, prompts: str, held_out: str | None, number: int, figures: Mapping[str, float]
) -> None:
    """Writes the card; the training has left one that does not know of the rounds.

    Args:
        policy (`str`): Folder of the policy after the round.
        prompts, held_out (`str`): Data that answers were sampled for, and that the policy was evaluated on.
        number (`int`): Of the round.
        figures (mapping): Metrics of the evaluation.
    """
    state = parsed_state(policy) or {}
    trained = run_of(state)
    if trained is None or not trained.about:  # of an earlier version
        return
    names = {"data": f"the best answers of round {number} to {prompts}", "eval_data": held_out or ""}
    about = trained.about | {"method": "RAFT", "command": command_line(), "data": names}
    rows = figures.get("eval_audit/greedy_n")
    settings = trained.settings | ({"eval_data": f"{rows} rows, "} if rows else {})
    log = [*state["log_history"], {"step": state["global_step"], **figures}]
    folder = Path(policy)
    write_model_card(
        folder,
        replace(trained, about=about, settings=settings),
        state | {"log_history": log},
        f"{folder.resolve().parents[1].name}-{folder.parent.name}",
        run_dir=folder,
        tags=["sft"],
        citation=CITATION,
    )
