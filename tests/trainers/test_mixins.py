"""What our trainers share."""

from copy import deepcopy

from trl import RewardConfig

from rs_rlhf.trainers.mixins import own_config


def test_a_trainer_s_own_config_can_be_filled_in_without_changing_the_caller_s(tmp_path):
    args = RewardConfig(str(tmp_path), use_cpu=True, bf16=False, model_init_kwargs={"revision": "a"}, report_to="none")
    before = deepcopy(args)
    own = own_config(args)
    assert own == args and type(own) is RewardConfig and own.device == args.device
    own.model_init_kwargs["revision"] = own.output_dir = "b"
    own.accelerator_config.dispatch_batches = False
    own.report_to.append("wandb")
    assert args == before and own.distributed_state is args.distributed_state
