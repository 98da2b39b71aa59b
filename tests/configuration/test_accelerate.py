# Copyright 2026 The modeling-qrnn authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""configuration/accelerate: each file is read as `accelerate launch` reads it, and starts what it says."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import StateDictType


FILES = sorted((Path(__file__).parents[2] / "configuration/accelerate").glob("*.yaml"))
# The program that starts the processes, and how many there are on how many machines
LAUNCHES = {
    "one_gpu": ("none", 1, 1),
    "ddp": ("multi_gpu", 2, 1),
    "fsdp2": ("use_fsdp", 2, 1),
    "two_nodes": ("multi_gpu", 16, 2),
    "cpu_two_processes": ("multi_gpu", 2, 1),
}


def launch_arguments(path: Path):
    parser = launch_command_parser()
    return parser, _validate_launch_command(parser.parse_args(["--config_file", str(path), "program.py"]))[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_read_whole(path):
    written = yaml.safe_load(path.read_text())
    assert written.items() <= load_config_from_file(str(path)).to_dict().items()
    parser, args = launch_arguments(path)
    options = {action.dest for action in parser._actions}
    for name, value in written.get("fsdp_config", {}).items():  # an unknown one would be ignored
        assert name in options and getattr(args, name) == value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_starts_what_it_says(path):
    _, args = launch_arguments(path)
    launcher, n_processes, n_machines = LAUNCHES[path.stem]
    used = [
        name for name in ("multi_gpu", "use_fsdp", "use_deepspeed", "use_megatron_lm", "tpu") if getattr(args, name)
    ]
    assert used == ([] if launcher == "none" else [launcher])
    assert (args.num_processes, args.num_machines) == (n_processes, n_machines)


def test_second_node():
    path = next(path for path in FILES if path.stem == "two_nodes")
    options = ["--config_file", str(path), "--machine_rank", "1", "--main_process_ip", "10.0.0.7", "program.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    assert args.rdzv_endpoint == "10.0.0.7:29500"


def test_fsdp2_shards_the_blocks_and_saves_whole_checkpoints():
    _, args = launch_arguments(next(path for path in FILES if path.stem == "fsdp2"))
    args.main_process_port = 0
    with patch_environment(**prepare_multi_gpu_env(args)):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type is StateDictType.FULL_STATE_DICT
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.transformer_cls_names_to_wrap is None  # so that the model's own are taken
